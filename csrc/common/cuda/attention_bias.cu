// What the bias needs besides the pairs: its cells (one block), the unit of the tables' gradients
// (reads dout and v once, bound by memory) and the gradients from their sums in that unit.
#include "common/cuda/attention_backward_bias.h"
#include "common/cuda/launch.h"

namespace pylum::cuda {
namespace {

constexpr int kThreads = 256;

__global__ void __launch_bounds__(kThreads)
    prepare_kernel(const __grid_constant__ AttentionParams p) {
    const RelativeBias& b = p.in.bias;
    for (int64_t i = threadIdx.x; i < b.buckets; i += kThreads) {
        if (b.thresholds[i] < (i == 0 ? 0 : b.thresholds[i - 1])) {
            atomicExch(reinterpret_cast<unsigned long long*>(p.batch.broken), 1ull);
            report_error(p.errors, kBadThresholds);
        }
    }
    if (!b.times) {
        return;
    }
    for (int cell = threadIdx.x; cell < kGapCells; cell += kThreads) {
        const uint64_t least = least_gap(cell);
        int64_t bucket = 0, stop = b.buckets;  // the first threshold above the cell's least gap
        while (bucket < stop) {
            const int64_t middle = (bucket + stop) / 2;
            if (static_cast<uint64_t>(b.thresholds[middle]) <= least) {
                bucket = middle + 1;
            } else {
                stop = middle;
            }
        }
        const bool more = bucket < b.buckets;
        const uint64_t last = more ? static_cast<uint64_t>(b.thresholds[bucket]) - 1 : UINT64_MAX;
        const bool crowded = bucket + 1 < b.buckets && cell + 1 < kGapCells &&
                             static_cast<uint64_t>(b.thresholds[bucket + 1]) < least_gap(cell + 1);
        p.bias.buckets[cell] = {last, bucket};
        p.bias.cells[cell] = {last, b.times[bucket],
                              crowded ? __uint_as_float(kCrowded) : b.times[bucket + more]};
    }
}

__device__ __forceinline__ uint32_t magnitude(float x) { return __float_as_uint(x) & 0x7fffffffu; }

template <typename T>
__device__ uint32_t most_of(const void* x, int64_t rows, int64_t heads, int64_t dim,
                            int64_t row_stride, int64_t by_head) {
    const int lane = static_cast<int>(threadIdx.x) % 32;
    const int64_t warps = static_cast<int64_t>(gridDim.x) * (kThreads / 32);
    uint32_t most = 0;
    for (int64_t i = static_cast<int64_t>(blockIdx.x) * (kThreads / 32) + threadIdx.x / 32;
         i < rows * heads; i += warps) {
        const T* row = static_cast<const T*>(x) + i / heads * row_stride + i % heads * by_head;
        for (int64_t d = lane; d < dim; d += 32) {
            most = max(most, magnitude(to_float(row[d])));
        }
    }
    return most;
}

__device__ void add_most(uint32_t* to, uint32_t most) {
#pragma unroll
    for (int step = 16; step > 0; step /= 2) {
        most = max(most, __shfl_xor_sync(~0u, most, step));
    }
    if (threadIdx.x % 32 == 0) {
        atomicMax(to, most);
    }
}

template <typename T>
__global__ void __launch_bounds__(kThreads)
    range_kernel(const __grid_constant__ AttentionGradients p) {
    const AttentionInputs& in = p.inputs.in;
    const int64_t rows = p.inputs.batch.rows;
    add_most(&p.bias_range->dout,
             most_of<T>(p.dout, rows, in.heads, in.value_dim, p.dout_row, p.dout_head));
    add_most(&p.bias_range->v,
             most_of<T>(in.v, rows, in.kv_heads, in.value_dim, in.v_row, in.v_head));
    uint32_t level = magnitude(in.score_scale);
    if (in.score_scales) {
        level = most_of<float>(in.score_scales, rows, 1, 1, 1, 0);
    }
    add_most(&p.bias_range->level, level);
    const DeviceBatch& d = p.inputs.batch;
    int64_t keys = 0;
    for (int64_t b = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; b < d.batch;
         b += static_cast<int64_t>(gridDim.x) * kThreads) {
        keys = max(keys, d.sequences[b].history + d.sequences[b].targets);
    }
    add_most(&p.bias_range->keys, static_cast<uint32_t>(min(keys, d.rows)));
}

// A batch that contradicts itself, or a gradient that is not finite.
__device__ bool no_gradients(const AttentionGradients& p) {
    const BiasRange& r = *p.bias_range;
    return *p.inputs.batch.broken || r.broken || max(r.dout, max(r.v, r.level)) >= 0x7f800000u;
}

__global__ void __launch_bounds__(kThreads)
    gradients_kernel(const __grid_constant__ AttentionGradients p) {
    const int64_t entries = bias_entries(p.inputs.in.bias);
    const float unit = 1.0f / bias_scale(p);
    const bool broken = no_gradients(p);
    for (int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; i < entries;
         i += static_cast<int64_t>(gridDim.x) * kThreads) {
        p.dtables[i] = broken ? quiet_nan() : __ll2float_rn(p.bias_sums[i]) * unit;
    }
}

}  // namespace

void launch_prepare_bias(const AttentionParams& p, cudaStream_t stream) {
    launch("attention: prepare_bias", prepare_kernel, dim3(p.in.bias.given() ? 1 : 0), kThreads, 0,
           stream, p);
}

void launch_bias_range(const AttentionGradients& p, cudaStream_t stream) {
    const AttentionInputs& in = p.inputs.in;
    const unsigned blocks = blocks_for(p.inputs.batch.rows * in.heads, kThreads);
    for_dtype(in.dtype, [&](auto type) {
        launch("attention: bias_range", range_kernel<decltype(type)>,
               dim3(blocks < 1024 ? blocks : 1024), kThreads, 0, stream, p);
    });
}

void launch_bias_gradients(const AttentionGradients& p, cudaStream_t stream) {
    const int64_t entries = bias_entries(p.inputs.in.bias);
    launch("attention: bias_gradients", gradients_kernel, dim3(blocks_for(entries, kThreads)),
           kThreads, 0, stream, p);
}

}  // namespace pylum::cuda
