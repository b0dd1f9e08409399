// Forward pass of every attention op: one task per strip of up to 32 rows and head. K and V are
// read once per strip; bound by arithmetic, 4 * rows * keys * head_dim.
#pragma once

#include <cmath>

#include "common/cpu/attention_strip.h"
#include "common/parallel.h"

namespace pylum {
namespace {

constexpr float kLog2e = 1.44269504f;
constexpr float kLn2 = 0.693147181f;

template <typename T, int kVecs>
struct ForwardStrip {
    static constexpr int kLead = kVecs * kLanes;
    alignas(64) float columns[kMaxDim * kLead];  // q, transposed and scaled
    alignas(64) float sums[kMaxDim * kLead];
    alignas(64) float part_sums[kMaxDim * kLead];
    alignas(64) float scores[kBlockKeys * kLead];
    alignas(64) float factor[kLead];
    alignas(64) float k_buffer[sizeof(T) == 4 ? 1 : kBlockKeys * kMaxDim];
    alignas(64) float v_buffer[sizeof(T) == 4 ? 1 : kBlockKeys * kMaxDim];

    void block(const AttentionInputs& p, const T* k, int64_t k_stride, const T* v, int64_t v_stride,
               int64_t first, int count, const Spans<kVecs>& spans, bool full,
               Running<kVecs>& run) {
        dots<kVecs>(rows_of(k, k_stride, count, p.head_dim, k_buffer), count, columns, p.head_dim,
                    scores);
        if (p.silu) {
            silu_block<kVecs>(scores, count, first, spans, full);
        } else {
            softmax_block<kVecs>(scores, count, first, spans, full, run, factor);
        }
        add_weighted<kVecs>(rows_of(v, v_stride, count, p.value_dim, v_buffer), count, scores,
                            p.silu ? nullptr : factor, p.value_dim, run.sums);
    }

    void history(const AttentionInputs& p, const Source<T>& k, const Source<T>& v,
                 const Spans<kVecs>& spans, int64_t begin, int64_t end, Running<kVecs>& run) {
        for (int64_t first = begin; first < end; first += kBlockKeys) {
            if (!spans.blind(first, kBlockKeys)) {
                const int count =
                    static_cast<int>(end - first < kBlockKeys ? end - first : kBlockKeys);
                block(p, k.block(first), k.block_stride(), v.block(first), v.block_stride(), first,
                      count, spans, spans.full(first, count), run);
            }
        }
    }

    // `run` and then `part`, per lane; a part that saw nothing changes no bit.
    void merge(const AttentionInputs& p, Running<kVecs>& run, const Running<kVecs>& part) {
        for (int v = 0; v < kVecs; ++v) {
            const vfloat peak = part.peak[v] > run.peak[v] ? part.peak[v] : run.peak[v];
            const vfloat base = peak == -kInfinity ? broadcast(0.0f) : peak;
            const vfloat one = broadcast(1.0f);
            const vfloat a = p.silu ? one : exp2(run.peak[v] - base);
            const vfloat b = p.silu ? one : exp2(part.peak[v] - base);
            run.peak[v] = peak;
            run.weight[v] = run.weight[v] * a + part.weight[v] * b;
            for (int64_t d = 0; d < p.value_dim; ++d) {
                const int64_t at = d * kLead + v * kLanes;
                store(run.sums + at, load(run.sums + at) * a + load(part.sums + at) * b);
            }
        }
    }

    void run(const AttentionInputs& p, const Strip& strip, int64_t head) {
        const Sequence& s = p.batch.sequences[strip.sequence];
        const int64_t kv_head = head / (p.heads / p.kv_heads);
        const auto k = source<T>(p.k, p.k_pages, p.k_row, p.k_head, p.head_dim, kv_head, p, s);
        const auto v = source<T>(p.v, p.v_pages, p.v_row, p.v_head, p.value_dim, kv_head, p, s);
        const int64_t row = strip_row(strip, s);
        load_columns<kVecs>(static_cast<const T*>(p.q) + row * p.q_row + head * p.q_head, p.q_row,
                            strip.rows, p.head_dim, p.silu ? p.scale : p.scale * kLog2e, columns);
        const Spans<kVecs> spans = history_spans<kVecs>(p.batch, strip, s);
        Running<kVecs> total;
        total.clear(sums, p.value_dim);
        if (strip.targets) {
            Running<kVecs> part;
            for (int64_t first = 0; first < spans.keys(); first += kChunkKeys) {
                if (spans.blind(first, kChunkKeys)) {
                    continue;
                }
                const int64_t end = first + kChunkKeys;
                part.clear(part_sums, p.value_dim);
                history(p, k, v, spans, first, end < spans.keys() ? end : spans.keys(), part);
                merge(p, total, part);
            }
            part.clear(part_sums, p.value_dim);
            for_group_blocks<kVecs>(
                p.batch, strip, s, [&](int64_t first, int count, const Spans<kVecs>& own) {
                    block(p, k.targets + first * k.stride, k.stride, v.targets + first * v.stride,
                          v.stride, first, count, own, false, part);
                });
            merge(p, total, part);
        } else {
            history(p, k, v, spans, 0, spans.keys(), total);
        }
        finish(p, strip, head, row, total);
    }

    void finish(const AttentionInputs& p, const Strip& strip, int64_t head, int64_t row,
                const Running<kVecs>& total) {
        for (int i = 0; i < strip.rows; ++i) {
            const float weight = total.weight[i / kLanes][i % kLanes];
            factor[i] = !p.silu          ? 1.0f / weight
                        : p.score_scales ? p.score_scales[row + i]
                                         : p.score_scale;
            if (p.lse) {
                p.lse[(row + i) * p.heads + head] =
                    total.peak[i / kLanes][i % kLanes] * kLn2 + logf(weight);
            }
        }
        const int64_t stride = p.heads * p.value_dim;
        store_columns<kVecs>(total.sums, factor, strip.rows, p.value_dim,
                             static_cast<T*>(p.out) + row * stride + head * p.value_dim, stride);
    }
};

template <typename T>
inline void forward_task(const AttentionInputs& p, int64_t task) {
    const Strip& strip = p.strips[task / p.heads];
    if (strip.rows <= 16) {
        ForwardStrip<T, 16 / kLanes> work;
        work.run(p, strip, task % p.heads);
    } else {
        ForwardStrip<T, 32 / kLanes> work;
        work.run(p, strip, task % p.heads);
    }
}

inline void attention_forward(const AttentionInputs& p) {
    parallel_for(p.num_strips * p.heads, p.threads, [&](int64_t task) {
        if (p.dtype == DType::kFloat32) {
            forward_task<float>(p, task);
        } else {
            forward_task<bfloat16>(p, task);
        }
    });
}

}  // namespace
}  // namespace pylum
