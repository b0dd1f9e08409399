// Last step of target rows: a warp per target and head adds the chunks of its history, left to
// right, and then the targets of its own group, one after the other. Reads each chunk's sums and
// the group's keys once; bound by latency for small groups.
#pragma once

#include "common/cuda/attention_bias.h"
#include "common/cuda/attention_mask.h"
#include "common/cuda/attention_sums.h"
#include "common/cuda/launch.h"

namespace pylum::cuda {

constexpr int kTargetThreads = 128;
constexpr int kLaneColumns = 8;  // a lane has columns lane, lane + 32, ... of up to 256

__device__ __forceinline__ float warp_sum(float x) {
#pragma unroll
    for (int step = 16; step > 0; step /= 2) {
        x += __shfl_xor_sync(~0u, x, step);
    }
    return x;
}

template <typename T, bool kSilu>
struct TargetSums {
    float sums[kLaneColumns] = {};
    float peak = -INFINITY, weight = 0.0f;

    __device__ __forceinline__ void add(float score, const T* value, int lane, int dim) {
        float factor = score;
        if constexpr (kSilu) {
            factor = silu<T>(score);
        } else {
            const float next = fmaxf(peak, score);
            const float base = next == -INFINITY ? 0.0f : next;
            const float move = exp2_of<T>(peak - base);
            factor = exp2_of<T>(score - base);
            peak = next;
            weight = weight * move + factor;
#pragma unroll
            for (int i = 0; i < kLaneColumns; ++i) {
                sums[i] *= move;
            }
        }
#pragma unroll
        for (int i = 0; i < kLaneColumns; ++i) {
            sums[i] += factor * element(value, 0, lane + 32 * i, dim);
        }
    }

    // These are older than `fresh`.
    __device__ __forceinline__ void merge(const TargetSums& fresh) {
        const Merge m = merge_factors<T, kSilu>(peak, fresh.peak);
        peak = m.peak;
        weight = merged(m, weight, fresh.weight);
#pragma unroll
        for (int i = 0; i < kLaneColumns; ++i) {
            sums[i] = merged(m, sums[i], fresh.sums[i]);
        }
    }

    __device__ __forceinline__ void load(const float* part, int lane, int dim) {
#pragma unroll
        for (int i = 0; i < kLaneColumns; ++i) {
            sums[i] = element(part, 0, lane + 32 * i, dim);
        }
        peak = part[dim];
        weight = part[dim + 1];
    }
};

template <typename T, bool kSilu>
__global__ void __launch_bounds__(kTargetThreads)
    targets_kernel(const __grid_constant__ AttentionParams p) {
    const int lane = static_cast<int>(threadIdx.x) % 32, head = static_cast<int>(blockIdx.y);
    const int64_t target = static_cast<int64_t>(blockIdx.x) * (kTargetThreads / 32) +
                           static_cast<int>(threadIdx.x) / 32;
    const DeviceBatch& d = p.batch;
    const Sequence& last = d.sequences[d.batch - 1];
    if (*d.broken || target >= last.first_target + last.targets) {
        return;
    }
    int64_t low = 0, high = d.batch;
    while (high - low > 1) {
        const int64_t middle = (low + high) / 2;
        (d.sequences[middle].first_target <= target ? low : high) = middle;
    }
    const Sequence& s = d.sequences[low];
    const int64_t number = target - s.first_target;
    const int64_t row = s.first_row + s.history - s.cached + number;
    const RowSpan span = target_row_span(d, p.in.batch, s, number);
    if (!span.known && lane == 0) {
        report_error(p.errors, kBadMask);
    }
    const int dim = static_cast<int>(p.in.head_dim), value_dim = static_cast<int>(p.in.value_dim);

    TargetSums<T, kSilu> total, part;
    total.load(part_of(p, 0, target, head), lane, value_dim);
    const int keys = max(span.end, static_cast<int>(s.context));
    for (int chunk = 1; p.chunks > 1 && chunk * kChunkKeys < keys; ++chunk) {
        part.load(part_of(p, chunk, target, head), lane, value_dim);
        total.merge(part);
    }

    const int kv_head = head / static_cast<int>(p.in.heads / p.in.kv_heads);
    const int64_t group = p.in.k_pages ? s.first_target : row - number;
    const T* q = static_cast<const T*>(p.in.q) + row * p.in.q_row + head * p.in.q_head;
    const T* k = static_cast<const T*>(p.in.k) + group * p.in.k_row + kv_head * p.in.k_head;
    const T* v = static_cast<const T*>(p.in.v) + group * p.in.v_row + kv_head * p.in.v_head;
    const float scale = kSilu ? p.in.scale : p.in.scale * kLog2e;
    float query[kLaneColumns];
#pragma unroll
    for (int i = 0; i < kLaneColumns; ++i) {
        query[i] = element(q, 0, lane + 32 * i, dim) * scale;
    }
    part = {};
    const bool bias = kSilu && p.in.bias.given();
    const int64_t* times = key_times(p, s, true);
    const int64_t time = row_time(p, row);
    for (int64_t i = span.group_begin; i < span.group_end; ++i) {
        float product = 0.0f;
#pragma unroll
        for (int j = 0; j < kLaneColumns; ++j) {
            product += query[j] * element(k, i * p.in.k_row, lane + 32 * j, dim);
        }
        float score = warp_sum(product);
        if (bias) {
            score +=
                pair_bias(p, static_cast<int>(i - number), time_gap(time, times ? times[i] : 0));
        }
        part.add(score, v + i * p.in.v_row, lane, value_dim);
    }
    total.merge(part);

    const float factor =
        span.known ? final_factor<kSilu>(p.in, row, head, total.peak, total.weight, lane == 0)
                   : quiet_nan();
    T* out = static_cast<T*>(p.in.out) + (row * p.in.heads + head) * value_dim;
#pragma unroll
    for (int i = 0; i < kLaneColumns; ++i) {
        if (lane + 32 * i < value_dim) {
            out[lane + 32 * i] = from_float<T>(total.sums[i] * factor);
        }
    }
}

template <typename T>
void launch_targets_as(const AttentionParams& p, cudaStream_t stream) {
    const dim3 grid(blocks_for(p.targets, kTargetThreads / 32),
                    static_cast<unsigned>(p.targets ? p.in.heads : 0));
    p.in.silu
        ? launch("attention: targets", targets_kernel<T, true>, grid, kTargetThreads, 0, stream, p)
        : launch("attention: targets", targets_kernel<T, false>, grid, kTargetThreads, 0, stream,
                 p);
}

}  // namespace pylum::cuda
