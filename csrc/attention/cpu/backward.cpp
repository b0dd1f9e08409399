// One task per sequence and key head: its rows in order, each adding to dk and dv, so every
// gradient is a sum in a fixed order. A worker sums dk and dv of a task in float32 in a workspace
// of its own.
#include "attention/cpu/backward_pairs.h"
#include "attention/cpu/backward_strip.h"
#include "common/parallel.h"

namespace pylum::attention::PYLUM_ISA {
namespace {

// f(section) for the rows of a sequence, at most `most` at a time and of one class.
template <typename F>
void for_sections(const Sequence& s, int64_t sequence, int64_t most, const F& f) {
    for (const bool targets : {false, true}) {
        const int64_t rows = targets ? s.targets : s.history;
        for (int64_t first = 0; first < rows; first += most) {
            const int64_t left = rows - first;
            f(Section{.sequence = static_cast<int32_t>(sequence),
                      .rows = static_cast<int32_t>(left < most ? left : most),
                      .first = first,
                      .targets = targets});
        }
    }
}

void add_rows(const BackwardParams& b, int64_t sequence, int64_t kv_head, const Gradients& to) {
    const Sequence& s = b.in.batch.sequences[sequence];
    const int64_t group = b.in.heads / b.in.kv_heads;
#ifdef __AVX512BF16__
#ifdef PYLUM_TILES
    const TileRegisters tiles;
#endif
    PairSection work(b, sequence, kv_head);
    for_sections(s, sequence, kTaskRows, [&](const Section& section) {
        for (int64_t head = kv_head * group; head < (kv_head + 1) * group; ++head) {
            work.run(section, head, to);
        }
    });
#else
    for_sections(s, sequence, kStripRows, [&](const Section& strip) {
        for (int64_t head = kv_head * group; head < (kv_head + 1) * group; ++head) {
            b.in.dtype == DType::kFloat32 ? run_strip<float>(b, strip, kv_head, head, to)
                                          : run_strip<bfloat16>(b, strip, kv_head, head, to);
        }
    });
#endif
}

// out[row] = factor * sums[row], out being rows [kv_heads, dim] of T.
template <typename T>
void write_rows(const float* sums, float factor, int64_t rows, int64_t dim, int64_t out_row,
                T* out) {
    for (int64_t row = 0; row < rows; ++row) {
        for_vectors(dim, [&](int64_t d, int n) {
            store_lanes(out + row * out_row + d,
                        load_lanes(sums + row * padded(dim) + d, n) * factor, n);
        });
    }
}

template <typename T>
void write_gradients(const BackwardParams& b, const Sequence& s, int64_t kv_head,
                     const Gradients& from) {
    const AttentionInputs& p = b.in;
    const int64_t keys = s.history + s.targets, first = s.first_row * p.kv_heads + kv_head;
    write_rows(from.dk, BlockOf<T>::kPairs ? p.scale : 1.0f, keys, p.head_dim,
               p.kv_heads * p.head_dim, static_cast<T*>(b.dk) + first * p.head_dim);
    write_rows(from.dv, 1.0f, keys, p.value_dim, p.kv_heads * p.value_dim,
               static_cast<T*>(b.dv) + first * p.value_dim);
}

void task(const BackwardParams& b, int64_t i, float* workspace, double* dbias) {
    const AttentionInputs& p = b.in;
    const int64_t sequence = b.order[i / p.kv_heads], kv_head = i % p.kv_heads;
    const Sequence& s = p.batch.sequences[sequence];
    const int64_t keys = s.history + s.targets;
    const int64_t dk_floats = keys * padded(p.head_dim), dv_floats = keys * padded(p.value_dim);
    memset(workspace, 0, sizeof(float) * (dk_floats + dv_floats));
    const Gradients to{
        .dk = workspace,
        .dv = workspace + dk_floats,
        .dpositions = dbias,
        .dtimes = dbias ? dbias + (p.bias.positions ? 2 * p.bias.length - 1 : 0) : nullptr};
    add_rows(b, sequence, kv_head, to);
    if (p.dtype == DType::kFloat32) {
        write_gradients<float>(b, s, kv_head, to);
    } else {
        write_gradients<bfloat16>(b, s, kv_head, to);
    }
}

}  // namespace

void backward(const BackwardParams& b) {
    const int64_t tasks = b.in.batch.batch * b.in.kv_heads;
    const int64_t workers = b.in.threads < b.workers ? b.in.threads : b.workers;
    if (!b.dbias) {
        for_workers(tasks, workers, [&](int64_t i, int64_t worker) {
            task(b, i, b.workspace + worker * b.worker_floats, nullptr);
        });
        return;
    }
    // Whoever adds to a copy of the tables' gradients does so alone, in the order of the tasks.
    const int64_t entries = bias_entries(b.in.bias);
    for_workers(kBiasCopies, workers, [&](int64_t copy, int64_t worker) {
        for (int64_t i = copy; i < tasks; i += kBiasCopies) {
            task(b, i, b.workspace + worker * b.worker_floats, b.dbias + copy * entries);
        }
    });
}

}  // namespace pylum::attention::PYLUM_ISA
