// What stands between the passes over pairs: one warp per query joins its parts, one thread per
// element joins those of a gradient, one block sums the losses. Bound by memory.
#include "common/cuda/launch.h"
#include "common/cuda/shared.h"
#include "sampled_softmax/cuda/rows.h"

namespace pylum::sampled_softmax {
namespace {

constexpr int kThreads = 256;
constexpr int kWarp = 32;
constexpr int kWarps = kThreads / kWarp;

struct BlockSum {
    double warps[kWarps];
};

// Of the threads' values, in a fixed order; all threads get it.
template <typename Join>
__device__ double join_block(double x, BlockSum& space, const Join& join) {
#pragma unroll
    for (int bits = kWarp / 2; bits > 0; bits /= 2) {
        x = join(x, __shfl_xor_sync(~0u, x, bits));
    }
    __syncthreads();  // the result before has been read
    if (threadIdx.x % kWarp == 0) {
        space.warps[threadIdx.x / kWarp] = x;
    }
    __syncthreads();
    x = space.warps[0];
    for (int w = 1; w < kWarps; ++w) {
        x = join(x, space.warps[w]);
    }
    return x;
}

__device__ double sum_block(double x, BlockSum& space) {
    return join_block(x, space, [](double a, double b) { return a + b; });
}

// NaN where a weight is not one.
__device__ double weight_of(const Scales& s, int64_t n) {
    const float w = s.weights ? s.weights[n] : 1.0f;
    if (w >= 0.0f && w < INFINITY) {
        return w;
    }
    report_error(s.errors, kBadWeights);
    return quiet_nan();
}

__global__ void __launch_bounds__(kThreads) scales_kernel(const Scales s) {
    PYLUM_SHARED(BlockSum, space);
    double sum = 0.0;
    for (int64_t n = threadIdx.x; n < s.count; n += kThreads) {
        sum += weight_of(s, n);
    }
    sum = sum_block(sum, space);
    const double factor = !s.mean ? 1.0 : sum == 0.0 ? 0.0 : 1.0 / sum;
    for (int64_t n = threadIdx.x; n < s.count; n += kThreads) {
        s.scales[n] = static_cast<float>(weight_of(s, n) * factor);
    }
}

__global__ void __launch_bounds__(kThreads) reduce_kernel(const Reduction r) {
    PYLUM_SHARED(BlockSum, space);
    double sum = 0.0;
    for (int64_t n = threadIdx.x; n < r.count; n += kThreads) {
        const float scale = r.scales[n];
        const double scaled = scale == 0.0f ? 0.0 : static_cast<double>(scale) * r.losses[n];
        sum += scaled;
        if (!r.sums) {
            r.loss[n] = static_cast<float>(scaled);
        }
    }
    sum = sum_block(sum, space);
    if (r.sums && threadIdx.x == 0) {
        *r.loss = static_cast<float>(sum);
    }
}

__global__ void __launch_bounds__(kThreads) largest_kernel(const Params p, float* largest) {
    PYLUM_SHARED(BlockSum, space);
    float most = 0.0f;
    for (int64_t n = threadIdx.x; n < p.num_queries; n += kThreads) {
        most = fmaxf(most, fabsf(p.scales[n]));
    }
    const double all = join_block(most, space, [](double a, double b) { return a < b ? b : a; });
    if (threadIdx.x == 0) {
        *largest = static_cast<float>(all);
    }
}

template <typename T>
__global__ void __launch_bounds__(kThreads)
    outcome_kernel(const Params p, const Space s, int64_t parts) {
    const int lane = static_cast<int>(threadIdx.x) % kWarp;
    const int64_t warps = static_cast<int64_t>(gridDim.x) * kWarps;
    for (int64_t n = static_cast<int64_t>(blockIdx.x) * kWarps + threadIdx.x / kWarp;
         n < p.num_queries; n += warps) {
        const int64_t row = known_row(p, p.targets[n]);
        float dot = 0.0f;
        for (int64_t d = lane; row >= 0 && d < p.dim; d += kWarp) {
            dot = __fmaf_rn(to_float(query_row<T>(p, n)[d]), to_float(item_row<T>(p, row)[d]), dot);
        }
        const float target = warp_sum(dot) * p.inverse_temperature - item_bias(p, row);
        float peak = -INFINITY, sum = 0.0f;
        for (int64_t part = lane; part < parts; part += kWarp) {
            peak = fmaxf(peak, s.sums[(part * p.num_queries + n) * 2]);
        }
#pragma unroll
        for (int bits = kWarp / 2; bits > 0; bits /= 2) {
            peak = fmaxf(peak, __shfl_xor_sync(~0u, peak, bits));
        }
        for (int64_t part = lane; part < parts; part += kWarp) {
            const float* of_part = s.sums + (part * p.num_queries + n) * 2;
            sum += of_part[0] == -INFINITY ? of_part[1] : of_part[1] * expf(of_part[0] - peak);
        }
        sum = warp_sum(sum);
        if (lane == 0) {
            write_outcome(p, s, n, row >= 0, target, peak, sum);
        }
    }
}

template <typename T>
__global__ void __launch_bounds__(kThreads)
    finish_queries_kernel(const Params p, const Space s, int64_t parts) {
    const int64_t warps = static_cast<int64_t>(gridDim.x) * kWarps;
    for (int64_t n = static_cast<int64_t>(blockIdx.x) * kWarps + threadIdx.x / kWarp;
         n < p.num_queries; n += warps) {
        const float factor = s.factors[n], others = s.others[n];
        const int64_t row = p.targets[n];
        const bool good = row >= 0 && row < p.num_items;
        T* out = static_cast<T*>(p.d_queries) + n * p.dim;
        for (int64_t d = threadIdx.x % kWarp; d < p.dim; d += kWarp) {
            float sum = 0.0f;
            for (int64_t part = 0; part < parts; ++part) {
                sum += s.d_queries[(part * p.num_queries + n) * p.dim + d];
            }
            sum -= good ? others * to_float(item_row<T>(p, row)[d]) : 0.0f;
            out[d] = from_float<T>(factor == 0.0f ? 0.0f : factor * sum);
        }
    }
}

// To d_items, or in place for those that are scattered into it.
template <typename T>
__global__ void __launch_bounds__(kThreads)
    finish_candidates_kernel(const Space s, T* out, int64_t elements, int64_t parts, float factor) {
    const int64_t step = static_cast<int64_t>(gridDim.x) * kThreads;
    for (int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; i < elements;
         i += step) {
        float sum = 0.0f;
        for (int64_t part = 0; part < parts; ++part) {
            sum += s.d_candidates[part * elements + i];
        }
        out[i] = from_float<T>(sum * (*s.largest * factor));
    }
}

template <typename T>
void launch_finish_candidates(const Params& p, const Space& s, T* out, cudaStream_t stream) {
    const int64_t elements = p.candidates() * p.dim;
    launch("sampled_softmax d_items", finish_candidates_kernel<T>,
           dim3(blocks_for(elements, kThreads)), kThreads, 0, stream, s, out, elements,
           parts_of_queries(p).count, p.inverse_temperature);
}

void launch_pass(const Params& p, const Space& s, Of of, cudaStream_t stream) {
    if (p.dtype == DType::kFloat32) {
        launch_pass_float32(p, s, of, stream);
    } else if (p.dtype == DType::kBFloat16) {
        launch_pass_bfloat16(p, s, of, stream);
    } else {
        launch_pass_float16(p, s, of, stream);
    }
}

}  // namespace

void launch_scales(const Scales& s, cudaStream_t stream) {
    launch("sampled_softmax scales", scales_kernel, dim3(1), kThreads, sizeof(BlockSum), stream, s);
}

void launch_reduce(const Reduction& r, cudaStream_t stream) {
    launch("sampled_softmax loss", reduce_kernel, dim3(1), kThreads, sizeof(BlockSum), stream, r);
}

void launch_forward_per_query(const Params& p, cudaStream_t stream) {
    const Space s(p, p.workspace);
    launch_queries(p, s, stream);
    if (p.d_items) {
        launch_scatter(p, s, stream);
    }
}

void launch_forward_shared(const Params& p, cudaStream_t stream) {
    const Space s(p, p.workspace);
    if (p.d_queries || p.d_items) {
        launch("sampled_softmax largest", largest_kernel, dim3(1), kThreads, sizeof(BlockSum),
               stream, p, s.largest);
    }
    launch_pass(p, s, Of::kSums, stream);
    const dim3 grid(blocks_for(p.num_queries, kWarps));
    const int64_t parts = parts_of_candidates(p).count;
    for_dtype(p.dtype, [&](auto type) {
        using T = decltype(type);
        launch("sampled_softmax outcomes", outcome_kernel<T>, grid, kThreads, 0, stream, p, s,
               parts);
        if (p.d_queries) {
            launch_pass(p, s, Of::kQueries, stream);
            launch("sampled_softmax d_queries", finish_queries_kernel<T>, grid, kThreads, 0, stream,
                   p, s, parts);
        }
        if (p.d_items) {
            launch_pass(p, s, Of::kItems, stream);
            if (p.negatives) {
                launch_finish_candidates(p, s, s.d_candidates, stream);
                launch_scatter(p, s, stream);
            } else {
                launch_finish_candidates(p, s, static_cast<T*>(p.d_items), stream);
            }
        }
    });
}

}  // namespace pylum::sampled_softmax
