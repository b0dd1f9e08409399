// Negatives of each query's own: a block per query gathers its negatives twice, once for their
// logits and once for d_queries; a row is read by as many lanes as 8 elements each take. Bound by
// random rows, of which the second reading mostly meets the cache.
#include "common/cuda/launch.h"
#include "common/cuda/shared.h"
#include "sampled_softmax/cuda/rows.h"

namespace pylum::sampled_softmax {
namespace {

constexpr int kThreads = 128;
constexpr int kWarp = 32;
constexpr int kWarps = kThreads / kWarp;
constexpr int kEach = 8;  // elements of a row that a lane holds
static_assert(kEach * kWarp >= kMostCudaDim);

struct Work {
    float sums[kThreads][kEach];
    float warps[kWarps];
};

struct Elements {
    float at[kEach];
};

// Elements [first, first + kEach) of a row; zeros past dim.
template <bool kWide, typename T>
__device__ __forceinline__ Elements load_elements(const T* row, int first, int dim) {
    Elements x;
    if constexpr (kWide) {
#pragma unroll
        for (int i = 0; i < kEach; i += kPack<T>) {
            Pack<T, kPack<T>> pack{};
            if (first + i < dim) {
                pack = load_pack<kPack<T>>(row + first + i);
            }
#pragma unroll
            for (int e = 0; e < kPack<T>; ++e) {
                x.at[i + e] = to_float(pack.at[e]);
            }
        }
    } else {
#pragma unroll
        for (int i = 0; i < kEach; ++i) {
            x.at[i] = first + i < dim ? to_float(row[first + i]) : 0.0f;
        }
    }
    return x;
}

template <typename T, bool kWide>
class QueryBlock {
  public:
    __device__ __forceinline__ QueryBlock(const Params& params, const Space& space, int lanes,
                                          Work& shared)
        : p(params), s(space), work(shared), width(lanes) {
        group = static_cast<int>(threadIdx.x) / width;
        groups = kThreads / width;
        first = static_cast<int>(threadIdx.x) % width * kEach;
    }

    __device__ __forceinline__ void run(int64_t n) {
        const int64_t target_row = known_row(p, p.targets[n]);
        const int64_t target_id = item_id(p, target_row);
        const int64_t* rows = p.negatives + n * p.num_negatives;
        float* e = s.exponents + n * p.num_negatives;
        const Elements x = elements(query_row<T>(p, n));
        bool bad = target_row < 0;
        const float target = logit(x, target_row);
        for (int64_t begin = 0; begin < p.num_negatives; begin += groups) {
            const int64_t r = begin + group;
            const bool here = r < p.num_negatives;
            const int64_t row = here ? known_row(p, rows[r]) : target_row;
            const bool masked = row >= 0 && item_id(p, row) == target_id;
            const float found = logit(x, row);
            bad = bad || row < 0;
            if (here && first == 0) {
                e[r] = masked ? -INFINITY : found;
            }
        }
        const bool good = __syncthreads_or(bad) == 0;
        float peak = -INFINITY;
        for (int64_t r = threadIdx.x; r < p.num_negatives; r += kThreads) {
            peak = fmaxf(peak, e[r]);
        }
        peak = join_block(peak, [](float a, float b) { return fmaxf(a, b); });
        float others = 0.0f;
        for (int64_t r = threadIdx.x; r < p.num_negatives; r += kThreads) {
            const float part = e[r] == -INFINITY ? 0.0f : expf(e[r] - peak);
            others += part;
            e[r] = part;
        }
        others = join_block(others, [](float a, float b) { return a + b; });
        if (threadIdx.x == 0) {
            write_outcome(p, s, n, good, target, peak, others);
        }
        __syncthreads();
        if (p.d_queries) {
            write_gradient(n, rows, e, target_row);
        }
    }

  private:
    __device__ __forceinline__ Elements elements(const T* row) const {
        return load_elements<kWide>(row, first, static_cast<int>(p.dim));
    }

    // Whole warps; every lane of the group gets it. NaN where there is no such row.
    __device__ __forceinline__ float logit(const Elements& x, int64_t row) const {
        float dot = 0.0f;
        if (row >= 0) {
            const Elements y = elements(item_row<T>(p, row));
#pragma unroll
            for (int i = 0; i < kEach; ++i) {
                dot = __fmaf_rn(x.at[i], y.at[i], dot);
            }
        }
        for (int bits = width / 2; bits > 0; bits /= 2) {
            dot += __shfl_xor_sync(~0u, dot, bits);
        }
        return dot * p.inverse_temperature - item_bias(p, row);
    }

    template <typename Join>
    __device__ __forceinline__ float join_block(float x, const Join& join) {
#pragma unroll
        for (int bits = kWarp / 2; bits > 0; bits /= 2) {
            x = join(x, __shfl_xor_sync(~0u, x, bits));
        }
        __syncthreads();  // the result before has been read
        if (threadIdx.x % kWarp == 0) {
            work.warps[threadIdx.x / kWarp] = x;
        }
        __syncthreads();
        x = work.warps[0];
#pragma unroll
        for (int w = 1; w < kWarps; ++w) {
            x = join(x, work.warps[w]);
        }
        return x;
    }

    __device__ __forceinline__ void write_gradient(int64_t n, const int64_t* rows, const float* e,
                                                   int64_t target_row) {
        float sums[kEach] = {};
        for (int64_t r = group; r < p.num_negatives; r += groups) {
            if (rows[r] >= 0 && rows[r] < p.num_items) {
                const float weight = e[r];
                const Elements y = elements(item_row<T>(p, rows[r]));
#pragma unroll
                for (int i = 0; i < kEach; ++i) {
                    sums[i] = __fmaf_rn(weight, y.at[i], sums[i]);
                }
            }
        }
#pragma unroll
        for (int i = 0; i < kEach; ++i) {
            work.sums[threadIdx.x][i] = sums[i];
        }
        __syncthreads();
        const float factor = s.factors[n], others = s.others[n];
        T* out = static_cast<T*>(p.d_queries) + n * p.dim;
        for (int d = threadIdx.x; d < p.dim; d += kThreads) {
            float sum = 0.0f;
            for (int at = d / kEach; at < kThreads; at += width) {
                sum += work.sums[at][d % kEach];
            }
            if (target_row >= 0) {
                sum -= others * to_float(item_row<T>(p, target_row)[d]);
            }
            out[d] = from_float<T>(factor == 0.0f ? 0.0f : factor * sum);
        }
        __syncthreads();  // all have read the sums
    }

    const Params& p;
    const Space& s;
    Work& work;
    int width, group, groups, first;
};

template <typename T, bool kWide>
__global__ void __launch_bounds__(kThreads)
    queries_kernel(const __grid_constant__ Params p, const __grid_constant__ Space s, int width) {
    PYLUM_SHARED(Work, work);
    QueryBlock<T, kWide> block(p, s, width, work);
    for (int64_t n = blockIdx.x; n < p.num_queries; n += gridDim.x) {
        block.run(n);
    }
}

}  // namespace

void launch_queries(const Params& p, const Space& s, cudaStream_t stream) {
    int width = 1;
    while (width * kEach < p.dim) {
        width *= 2;
    }
    for_dtype(p.dtype, [&](auto type) {
        using T = decltype(type);
        const auto whole = [](int64_t elements) { return elements % kPack<T> == 0; };
        const bool wide = whole(p.dim) && whole(p.queries_stride) && whole(p.items_stride) &&
                          aligned16(p.queries) && aligned16(p.items);
        launch("sampled_softmax queries", wide ? queries_kernel<T, true> : queries_kernel<T, false>,
               dim3(blocks_for(p.num_queries, 1)), kThreads, sizeof(Work), stream, p, s, width);
    });
}

}  // namespace pylum::sampled_softmax
