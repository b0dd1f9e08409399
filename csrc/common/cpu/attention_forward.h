// Forward pass of every attention op: one task per head and section of up to 128 rows, which go
// through the keys together in strips of 32. Bound by arithmetic, 4 * rows * keys * head_dim; K and
// V are read once per task.
#pragma once

#include <cmath>

#include "common/cpu/attention_bias.h"
#include "common/cpu/attention_targets.h"
#include "common/cpu/attention_tiles.h"
#include "common/parallel.h"

namespace pylum {
namespace {

constexpr float kLog2e = 1.44269504f;
constexpr float kLn2 = 0.693147181f;

struct ForwardStrip {
    Section section;
    Spans spans;    // on the history
    Running total;  // of the parts merged so far; history rows have one part only
    Running part;
    BiasRows rows;                                    // where there is a bias
    alignas(64) float columns[kMaxDim * kStripRows];  // q, transposed and scaled

    int64_t keys() const { return spans.keys(); }
    bool narrow() const { return section.rows <= 16; }
};

template <typename T>
class ForwardTask {
    static constexpr bool kPairs = BlockOf<T>::kPairs, kTiles = BlockOf<T>::kTiles;
    using Keys = typename BlockOf<T>::Keys;
    using Values = typename BlockOf<T>::Values;

  public:
    ForwardTask(const AttentionInputs& inputs, const Section& section, int64_t query_head)
        : p(inputs),
          s(inputs.batch.sequences[section.sequence]),
          head(query_head),
          targets(section.targets),
          k(source<T>(p.k, p.k_pages, p.k_row, p.k_head, p.head_dim, kv_head(), p, s)),
          v(source<T>(p.v, p.v_pages, p.v_row, p.v_head, p.value_dim, kv_head(), p, s)) {
        blocks.k = k;
        blocks.v = v;
        blocks.head_dim = p.head_dim;
        blocks.value_dim = p.value_dim;
        prefetch_rows(q_of(strip_row(section, s)), p.q_row, section.rows, p.head_dim);
        for (int first = 0; first < section.rows; first += kStripRows) {
            const int left = section.rows - first;
            begin(strips[count++], {.sequence = section.sequence,
                                    .rows = left < kStripRows ? left : kStripRows,
                                    .first = section.first + first,
                                    .targets = section.targets});
        }
        prefetch_block(0);
    }

    void run() {
        if (!targets) {
            history(0, last_key(), &ForwardStrip::total);
        } else {
            for (int64_t first = 0; first < last_key(); first += kChunkKeys) {
                for_strips([&](ForwardStrip& strip) { strip.part.clear(p.value_dim); });
                history(first, first + kChunkKeys, &ForwardStrip::part);
                for_strips([&](ForwardStrip& strip) { merge(strip); });
            }
            for_strips([&](ForwardStrip& strip) {
                strip.part.clear(p.value_dim);
                own_group(strip);
                merge(strip);
            });
        }
        for_strips([&](ForwardStrip& strip) {
            strip.narrow() ? finish<16 / kLanes>(strip) : finish<32 / kLanes>(strip);
        });
    }

  private:
    const T* q_of(int64_t row) const {
        return static_cast<const T*>(p.q) + row * p.q_row + head * p.q_head;
    }
    int64_t kv_head() const { return head / (p.heads / p.kv_heads); }
    int64_t last_key() const {
        int64_t last = 0;
        for (int i = 0; i < count; ++i) {
            last = strips[i].keys() > last ? strips[i].keys() : last;
        }
        return last;
    }
    template <typename F>
    void for_strips(const F& f) {
        for (int i = 0; i < count; ++i) {
            f(strips[i]);
        }
    }

    void begin(ForwardStrip& strip, const Section& section) {
        strip.section = section;
        strip.spans = history_spans(p.batch, section, s);
        strip.total.clear(p.value_dim);
        const int64_t row = strip_row(section, s);
        if (p.bias.given()) {
            strip.rows = bias_rows(p, section, s, row);
        }
        const T* q = q_of(row);
        if (strip.narrow()) {
            columns<16 / kLanes>(q, section.rows, strip.columns);
        } else {
            columns<32 / kLanes>(q, section.rows, strip.columns);
        }
    }

    float scale() const { return p.silu ? p.scale : p.scale * kLog2e; }

    template <int kVecs>
    void columns(const T* q, int rows, float* out) {
        if constexpr (kPairs) {
            load_pair_columns<kVecs>(q, p.q_row, rows, p.head_dim, out);
        } else {
            load_columns<kVecs>(q, p.q_row, rows, p.head_dim, scale(), out);
        }
    }

    // The block of history at position `first`.
    void load_block(int64_t first, int size, Keys& keys, Values& values) {
        if constexpr (kTiles) {
            keys = k.pages ? page_key_tiles(k.block(first), size, p.head_dim, k_tiles)
                           : key_tiles(k.block(first), k.stride, size, p.head_dim, k_tiles);
            values = v.pages ? page_value_tiles(v.block(first), size, p.value_dim, v_tiles)
                             : value_tiles(v.block(first), v.stride, size, p.value_dim, v_tiles);
        } else if constexpr (kPairs) {
            if (k.pages) {
                keys = {reinterpret_cast<const T*>(blocks.keys(first, size)), 2, 2 * kBlockKeys};
            } else {
                keys = pair_keys(k.block(first), k.stride, size, p.head_dim, blocks.k_buffer);
            }
            values.data = blocks.values(first, size, &values.stride);
            values.count = size;
        } else {
            keys = k.pages ? key_rows(k.block(first), size, p.head_dim, k_buffer)
                           : rows_of(k.block(first), k.stride, size, p.head_dim, k_buffer);
            values = v.pages ? value_rows(v.block(first), size, p.value_dim, v_buffer)
                             : rows_of(v.block(first), v.stride, size, p.value_dim, v_buffer);
        }
    }

    // The block at `first` arrives while the one before it is computed.
    void prefetch_block(int64_t first) const {
        if (!k.pages && first < last_key()) {
            const int count = block_size(last_key() - first);
            prefetch_rows(k.block(first), k.stride, count, p.head_dim);
            prefetch_rows(v.block(first), v.stride, count, p.value_dim);
        }
    }

    // Targets from number `first` of the sequence on.
    void load_targets(int64_t first, int size, Keys& keys, Values& values) {
        const T* k_rows = k.targets + first * k.stride;
        const T* v_rows = v.targets + first * v.stride;
        if constexpr (kTiles) {
            keys = key_tiles(k_rows, k.stride, size, p.head_dim, k_tiles);
            values = value_tiles(v_rows, v.stride, size, p.value_dim, v_tiles);
        } else if constexpr (kPairs) {
            keys = pair_keys(k_rows, k.stride, size, p.head_dim, blocks.k_buffer);
            pack_values(v_rows, v.stride, size, p.value_dim, blocks.v_buffer);
            values = {blocks.v_buffer, p.value_dim, size};
        } else {
            keys = rows_of(k_rows, k.stride, size, p.head_dim, k_buffer);
            values = rows_of(v_rows, v.stride, size, p.value_dim, v_buffer);
        }
    }

    // Every strip over the history it sees in [begin, end), block by block.
    void history(int64_t begin, int64_t end, Running ForwardStrip::* run) {
        end = end < last_key() ? end : last_key();
        for (int64_t first = begin; first < end; first += kBlockKeys) {
            Keys keys{};
            Values values{};
            for_strips([&](ForwardStrip& strip) {
                if (first >= strip.keys() || strip.spans.blind(first, kBlockKeys)) {
                    return;
                }
                if (!keys.data) {
                    load_block(first, block_size(end - first), keys, values);
                    prefetch_block(first + kBlockKeys);
                }
                const int size = block_size(strip.keys() - first);
                block(strip, keys, values, first, size, strip.spans, strip.spans.full(first, size),
                      false, strip.*run);
            });
        }
    }

    void own_group(ForwardStrip& strip) {
        for_group_blocks(p.batch, strip.section, s, [&](int64_t first, int size, const Spans& own) {
            Keys keys{};
            Values values{};
            load_targets(first, size, keys, values);
            block(strip, keys, values, first, size, own, false, true, strip.part);
        });
    }

    static int block_size(int64_t left) {
        return static_cast<int>(left < kBlockKeys ? left : kBlockKeys);
    }

    void block(ForwardStrip& strip, Keys keys, Values values, int64_t first, int size,
               const Spans& spans, bool full, bool own, Running& run) {
        if (strip.narrow()) {
            block<16 / kLanes>(strip, keys, values, first, size, spans, full, own, run);
        } else {
            block<32 / kLanes>(strip, keys, values, first, size, spans, full, own, run);
        }
    }

    template <int kVecs>
    void block(const ForwardStrip& strip, Keys keys, Values values, int64_t first, int size,
               const Spans& spans, bool full, bool own, Running& run) {
        bool whole = full;
        if constexpr (kPairs) {
            dots<kVecs>(keys, size, strip.columns, (p.head_dim + 1) / 2, scale(), scores);
            // Values past the strip's that share a product with it are seen by no lane.
            whole = full && (size == values.count || (!kTiles && size % 2 == 0));
        } else {
            dots<kVecs>(keys, size, strip.columns, p.head_dim, scores);
        }
        if (p.bias.given()) {
            add_bias<kVecs>(p.bias, strip.rows, bias_keys(p.bias, s, first, size, own), scores);
        }
        if (p.silu) {
            silu_block<kVecs>(scores, size, first, spans, full);
        } else {
            softmax_block<kVecs>(scores, size, first, spans, full, run, factor);
        }
        const float* move = p.silu ? nullptr : factor;
        if (whole || all_finite(values, size, p.value_dim)) {
            add_weighted<kVecs>(values, size, scores, move, p.value_dim, run.sums);
        } else {
            add_seen<kVecs>(values, size, first, spans, scores, move, p.value_dim, run.sums);
        }
    }

    // The total and then the part, per lane; a part that saw nothing changes no bit.
    void merge(ForwardStrip& strip) {
        Running &total = strip.total, &part = strip.part;
        const int lead = strip.narrow() ? 16 : 32;
        for (int lane = 0; lane < lead; lane += kLanes) {
            const vfloat a_peak = load(total.peak + lane), b_peak = load(part.peak + lane);
            const vfloat peak = b_peak > a_peak ? b_peak : a_peak;
            const vfloat base = peak == -kInfinity ? broadcast(0.0f) : peak;
            const vfloat a = p.silu ? broadcast(1.0f) : exp2(a_peak - base);
            const vfloat b = p.silu ? broadcast(1.0f) : exp2(b_peak - base);
            store(total.peak + lane, peak);
            store(total.weight + lane,
                  load(total.weight + lane) * a + load(part.weight + lane) * b);
            for (int64_t at = lane; at < p.value_dim * lead; at += lead) {
                store(total.sums + at, load(total.sums + at) * a + load(part.sums + at) * b);
            }
        }
    }

    template <int kVecs>
    void finish(const ForwardStrip& strip) {
        const int64_t row = strip_row(strip.section, s);
        for (int i = 0; i < strip.section.rows; ++i) {
            const float weight = strip.total.weight[i];
            factor[i] = !p.silu          ? 1.0f / weight
                        : p.score_scales ? p.score_scales[row + i]
                                         : p.score_scale;
            if (p.lse) {
                p.lse[(row + i) * p.heads + head] = strip.total.peak[i] * kLn2 + logf(weight);
            }
        }
        const int64_t stride = p.heads * p.value_dim;
        store_columns<kVecs>(strip.total.sums, factor, strip.section.rows, p.value_dim,
                             static_cast<T*>(p.out) + row * stride + head * p.value_dim, stride);
    }

    const AttentionInputs& p;
    const Sequence& s;
    const int64_t head;
    const bool targets;
    const Source<T> k, v;
    int count = 0;
    ForwardStrip strips[kTaskRows / kStripRows];
    alignas(64) float scores[kBlockKeys * kStripRows];
    alignas(64) float factor[kStripRows];
    KeyBlocks<T> blocks;  // of pairs
    alignas(64) float k_buffer[kBlockKeys * kMaxDim];
    alignas(64) float v_buffer[sizeof(T) == 4 ? 1 : kBlockKeys * kMaxDim];
    alignas(64) T k_tiles[kTiles ? kBlockKeys * kMaxDim : 1];
    alignas(64) T v_tiles[kTiles ? kBlockKeys * kMaxDim : 1];
};

// A bias is computed in the layout of queries in the lanes: with one, target rows take that path.
template <typename T>
__attribute__((noinline)) void forward_task(const AttentionInputs& p, const Section& section,
                                            int64_t head) {
    section.targets && !p.bias.given() ? TargetTask<T>(p, section, head).run()
                                       : ForwardTask<T>(p, section, head).run();
}

// The sections of one sequence and head follow each other, so that its keys stay in cache.
inline void attention_forward(const AttentionInputs& p) {
    const int64_t* offsets = p.section_offsets;
    parallel_for(offsets[p.batch.batch] * p.heads, p.threads, [&](int64_t task) {
        int64_t low = 0, high = p.batch.batch;
        while (high - low > 1) {
            const int64_t middle = (low + high) / 2;
            (offsets[middle] * p.heads <= task ? low : high) = middle;
        }
        const int64_t sections = offsets[low + 1] - offsets[low];
        const int64_t i = task - offsets[low] * p.heads;
        const Section& section = p.sections[offsets[low] + i % sections];
#ifdef PYLUM_TILES
        const TileRegisters tiles;
#endif
        // On AVX512-BF16 and AMX only bfloat16 comes here.
        if constexpr (!kNativePairs) {
            if (p.dtype == DType::kFloat32) {
                forward_task<float>(p, section, i / sections);
                return;
            }
        }
        forward_task<bfloat16>(p, section, i / sections);
    });
}

}  // namespace
}  // namespace pylum
