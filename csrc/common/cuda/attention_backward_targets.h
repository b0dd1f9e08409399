// What the gradients need row by row: the sum of out * dout of every row, and the pairs inside the
// groups of targets. A warp per row and head, columns on its lanes; bound by latency.
#pragma once

#include "common/cuda/attention_backward_bias.h"
#include "common/cuda/attention_mask.h"
#include "common/cuda/attention_sums.h"
#include "common/cuda/attention_targets.h"
#include "common/cuda/launch.h"

namespace pylum::cuda {

// A row's columns on the lanes of a warp.
struct LaneColumns {
    float at[kLaneColumns];

    template <typename T>
    __device__ __forceinline__ void load(const T* x, int lane, int64_t dim) {
#pragma unroll
        for (int i = 0; i < kLaneColumns; ++i) {
            at[i] = element(x, 0, lane + 32 * i, static_cast<int>(dim));
        }
    }
    __device__ __forceinline__ void clear() {
#pragma unroll
        for (int i = 0; i < kLaneColumns; ++i) {
            at[i] = 0.0f;
        }
    }
    __device__ __forceinline__ void add(float factor, const LaneColumns& x) {
#pragma unroll
        for (int i = 0; i < kLaneColumns; ++i) {
            at[i] += factor * x.at[i];
        }
    }
    __device__ __forceinline__ float dot(const LaneColumns& x) const {
        float sum = 0.0f;
#pragma unroll
        for (int i = 0; i < kLaneColumns; ++i) {
            sum += at[i] * x.at[i];
        }
        return warp_sum(sum);
    }
    template <typename T>
    __device__ __forceinline__ void store(T* to, float factor, int lane, int64_t dim) const {
#pragma unroll
        for (int i = 0; i < kLaneColumns; ++i) {
            if (lane + 32 * i < dim) {
                to[lane + 32 * i] = from_float<T>(at[i] * factor);
            }
        }
    }
};

template <typename T>
__device__ __forceinline__ const T* row_of(const void* x, int64_t row, int64_t stride, int head,
                                           int64_t by_head) {
    return static_cast<const T*>(x) + row * stride + head * by_head;
}

template <typename T>
__global__ void __launch_bounds__(kTargetThreads)
    delta_kernel(const __grid_constant__ AttentionGradients p) {
    const int lane = static_cast<int>(threadIdx.x) % 32, head = static_cast<int>(blockIdx.y);
    const AttentionInputs& in = p.inputs.in;
    const int64_t row = static_cast<int64_t>(blockIdx.x) * (kTargetThreads / 32) +
                        static_cast<int>(threadIdx.x) / 32;
    if (row >= p.inputs.batch.rows) {
        return;
    }
    LaneColumns out, dout;
    out.load(row_of<T>(in.out, row, in.heads * in.value_dim, head, in.value_dim), lane,
             in.value_dim);
    dout.load(row_of<T>(p.dout, row, p.dout_row, head, p.dout_head), lane, in.value_dim);
    const float sum = out.dot(dout);
    if (lane == 0) {
        p.delta[row * in.heads + head] = sum;
    }
}

// The target a warp works on: its sequence, or -1 where there is none.
struct TargetPlace {
    int64_t sequence, number, row;
};

__device__ __forceinline__ TargetPlace find_target(const DeviceBatch& d, int64_t target) {
    const Sequence& last = d.sequences[d.batch - 1];
    if (*d.broken || target >= last.first_target + last.targets) {
        return {-1, 0, 0};
    }
    int64_t low = 0, high = d.batch;
    while (high - low > 1) {
        const int64_t middle = (low + high) / 2;
        (d.sequences[middle].first_target <= target ? low : high) = middle;
    }
    const Sequence& s = d.sequences[low];
    const int64_t number = target - s.first_target;
    return {low, number, s.first_row + s.history - s.cached + number};
}

// Of the query in `row` and target `i` of its sequence as the key.
__device__ __forceinline__ uint64_t own_gap(const AttentionParams& p, const Sequence& s,
                                            int64_t row, int64_t i) {
    return p.in.bias.times ? time_gap(row_time(p, row), key_times(p, s, true)[i]) : 0;
}

// dq of one target from the keys of its own group, to the parts that the tiles begin with.
template <typename T, bool kSilu>
__global__ void __launch_bounds__(kTargetThreads)
    own_queries_kernel(const __grid_constant__ AttentionGradients p) {
    const int lane = static_cast<int>(threadIdx.x) % 32, head = static_cast<int>(blockIdx.y);
    const AttentionInputs& in = p.inputs.in;
    const int64_t target = static_cast<int64_t>(blockIdx.x) * (kTargetThreads / 32) +
                           static_cast<int>(threadIdx.x) / 32;
    const TargetPlace place = find_target(p.inputs.batch, target);
    if (place.sequence < 0) {
        return;
    }
    const Sequence& s = p.inputs.batch.sequences[place.sequence];
    const RowSpan span = target_row_span(p.inputs.batch, in.batch, s, place.number);
    const int kv_head = head / static_cast<int>(in.heads / in.kv_heads);
    LaneColumns q, dout, k, v, dq;
    q.load(row_of<T>(in.q, place.row, in.q_row, head, in.q_head), lane, in.head_dim);
    dout.load(row_of<T>(p.dout, place.row, p.dout_row, head, p.dout_head), lane, in.value_dim);
    dq.clear();
    const float level = row_level<kSilu>(in, place.row, head);
    const float delta = kSilu ? 0.0f : p.delta[place.row * in.heads + head];
    const bool bias = kSilu && in.bias.given();
    const float unit = bias ? bias_scale(p) : 0.0f;
    for (int64_t i = span.group_begin; i < span.group_end; ++i) {
        const int64_t row = place.row - place.number + i;
        k.load(row_of<T>(in.k, row, in.k_row, kv_head, in.k_head), lane, in.head_dim);
        v.load(row_of<T>(in.v, row, in.v_row, kv_head, in.v_head), lane, in.value_dim);
        const uint64_t gap = own_gap(p.inputs, s, place.row, i);
        const float score =
            q.dot(k) * in.scale +
            (bias ? pair_bias(p.inputs, static_cast<int>(i - place.number), gap) : 0.0f);
        const PairGradient pair = pair_gradient<T, kSilu>(score, dout.dot(v), level, delta);
        dq.add(pair.score, k);
        if (bias && lane == 0) {
            add_pair_to_tables(p, static_cast<int>(i - place.number), gap, pair.score, unit);
        }
    }
    dq.store(p.inputs.parts + (target * in.heads + head) * in.head_dim, 1.0f, lane, in.head_dim);
}

// dk and dv of one target, from itself and the later targets of its group.
template <typename T, bool kSilu>
__global__ void __launch_bounds__(kTargetThreads)
    own_keys_kernel(const __grid_constant__ AttentionGradients p) {
    const int lane = static_cast<int>(threadIdx.x) % 32, kv_head = static_cast<int>(blockIdx.y);
    const AttentionInputs& in = p.inputs.in;
    const DeviceBatch& d = p.inputs.batch;
    const int64_t target = static_cast<int64_t>(blockIdx.x) * (kTargetThreads / 32) +
                           static_cast<int>(threadIdx.x) / 32;
    const TargetPlace place = find_target(d, target);
    if (place.sequence < 0) {
        return;
    }
    const Sequence& s = d.sequences[place.sequence];
    LaneColumns q, dout, k, v, dk, dv;
    k.load(row_of<T>(in.k, place.row, in.k_row, kv_head, in.k_head), lane, in.head_dim);
    v.load(row_of<T>(in.v, place.row, in.v_row, kv_head, in.v_head), lane, in.value_dim);
    dk.clear();
    dv.clear();
    const int group = static_cast<int>(in.heads / in.kv_heads);
    for (int head = kv_head * group; head < (kv_head + 1) * group; ++head) {
        for (int64_t i = place.number; i < s.targets; ++i) {
            const RowSpan span = target_row_span(d, in.batch, s, i);
            if (span.known && span.group_begin > place.number) {
                break;  // a later group, or past the window
            }
            if (!span.known) {
                continue;
            }
            const int64_t row = place.row - place.number + i;
            q.load(row_of<T>(in.q, row, in.q_row, head, in.q_head), lane, in.head_dim);
            dout.load(row_of<T>(p.dout, row, p.dout_row, head, p.dout_head), lane, in.value_dim);
            float score = q.dot(k) * in.scale;
            if (kSilu && in.bias.given()) {
                score += pair_bias(p.inputs, static_cast<int>(place.number - i),
                                   own_gap(p.inputs, s, row, place.number));
            }
            const PairGradient pair =
                pair_gradient<T, kSilu>(score, dout.dot(v), row_level<kSilu>(in, row, head),
                                        kSilu ? 0.0f : p.delta[row * in.heads + head]);
            dk.add(pair.score, q);
            dv.add(pair.weight, dout);
        }
    }
    const int64_t at = place.row * in.kv_heads + kv_head;
    dk.store(static_cast<T*>(p.dk) + at * in.head_dim, in.scale, lane, in.head_dim);
    dv.store(static_cast<T*>(p.dv) + at * in.value_dim, 1.0f, lane, in.value_dim);
}

// Before the tiles: they read delta and the parts.
template <typename T>
void launch_backward_rows_as(const AttentionGradients& p, cudaStream_t stream) {
    const AttentionInputs& in = p.inputs.in;
    const auto grid = [&](int64_t rows, int64_t heads) {
        return dim3(blocks_for(rows, kTargetThreads / 32), static_cast<unsigned>(heads));
    };
    if (!in.silu) {
        launch("attention: delta", delta_kernel<T>, grid(p.inputs.batch.rows, in.heads),
               kTargetThreads, 0, stream, p);
    }
    launch("attention: own queries",
           in.silu ? own_queries_kernel<T, true> : own_queries_kernel<T, false>,
           grid(p.inputs.targets, in.heads), kTargetThreads, 0, stream, p);
    launch("attention: own keys", in.silu ? own_keys_kernel<T, true> : own_keys_kernel<T, false>,
           grid(p.inputs.targets, in.kv_heads), kTargetThreads, 0, stream, p);
}

}  // namespace pylum::cuda
