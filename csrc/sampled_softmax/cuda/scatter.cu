// d_items where candidates are rows of lists: the contributions, sorted by row, are summed 32 at a
// time by a warp; of a row that crosses such chunks, the sums of its pieces are then added in
// order. Deterministic. Reads one row for each contribution: bound by random rows.
#include "common/cuda/launch.h"
#include "common/cuda/sort.h"
#include "sampled_softmax/cuda/rows.h"

namespace pylum::sampled_softmax {
namespace {

constexpr int kThreads = 256;
constexpr int kWarp = 32;
constexpr int kWarps = kThreads / kWarp;
constexpr int kEach = static_cast<int>(kMostCudaDim) / kWarp;  // columns of a lane
static_assert(kChunk == kWarp);

// Those that add nothing get the row past the last one.
__global__ void __launch_bounds__(kThreads)
    key_kernel(const Params p, const Space s, int64_t terms, int shift) {
    const int64_t step = static_cast<int64_t>(gridDim.x) * kThreads;
    for (int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; i < terms;
         i += step) {
        const int64_t in_list = i - p.num_queries;
        int64_t n = i, row = 0;
        if (in_list < 0) {
            row = p.targets[i];
        } else {
            n = p.per_query ? in_list / p.num_negatives : -1;
            row = p.negatives[in_list];
        }
        if (row < 0 || row >= p.num_items || (n >= 0 && s.shares[n] == 0.0f)) {
            row = p.num_items;
        }
        s.words[i] = static_cast<uint64_t>(row) << shift | static_cast<uint64_t>(i);
    }
}

struct Terms {
    Params p;
    Space s;
    const uint64_t* keys;  // sorted
    int64_t count;
    int shift;
};

__device__ __forceinline__ int64_t row_at(const Terms& t, int64_t at) {
    return at >= 0 && at < t.count ? static_cast<int64_t>(t.keys[at] >> t.shift) : -1;
}

struct Columns {
    float at[kEach];
};

// This lane's columns of a contribution.
template <typename T>
__device__ __forceinline__ Columns load_term(const Terms& t, uint64_t key) {
    const Params& p = t.p;
    const auto i = static_cast<int64_t>(key & ((uint64_t{1} << t.shift) - 1));
    const int64_t in_list = i - p.num_queries;
    const int lane = static_cast<int>(threadIdx.x) % kWarp;
    Columns x;
    const auto take = [&](const auto* row, float factor) {
#pragma unroll
        for (int c = 0; c < kEach; ++c) {
            const int d = lane + c * kWarp;
            x.at[c] = d < p.dim ? factor * to_float(row[d]) : 0.0f;
        }
    };
    if (in_list >= 0 && !p.per_query) {
        take(t.s.d_candidates + in_list * p.dim, 1.0f);
    } else {
        const int64_t n = in_list < 0 ? i : in_list / p.num_negatives;
        const float weight = in_list < 0 ? -t.s.others[n] : t.s.exponents[in_list];
        take(query_row<T>(p, n), weight * t.s.factors[n]);
    }
    return x;
}

template <typename T>
__device__ __forceinline__ void store(T* row, int64_t dim, const Columns& x) {
#pragma unroll
    for (int c = 0; c < kEach; ++c) {
        const int64_t d = static_cast<int64_t>(threadIdx.x % kWarp) + c * kWarp;
        if (d < dim) {
            row[d] = from_float<T>(x.at[c]);
        }
    }
}

__device__ __forceinline__ void add(Columns& sum, const Columns& x) {
#pragma unroll
    for (int c = 0; c < kEach; ++c) {
        sum.at[c] += x.at[c];
    }
}

// Of chunk c: the piece of a row that began before it, and that of a row that goes on behind it.
__device__ __forceinline__ float* head_of(const Terms& t, int64_t c) {
    return t.s.partials + 2 * c * t.p.dim;
}
__device__ __forceinline__ float* tail_of(const Terms& t, int64_t c) {
    return t.s.partials + (2 * c + 1) * t.p.dim;
}

template <typename T>
__global__ void __launch_bounds__(kThreads, 2) chunk_kernel(const __grid_constant__ Terms t) {
    const int lane = static_cast<int>(threadIdx.x) % kWarp;
    const int64_t warps = static_cast<int64_t>(gridDim.x) * kWarps;
    T* table = static_cast<T*>(t.p.d_items);
    for (int64_t c = static_cast<int64_t>(blockIdx.x) * kWarps + threadIdx.x / kWarp;
         c * kChunk < t.count; c += warps) {
        const int64_t begin = c * kChunk, end = min(begin + kChunk, t.count);
        const uint64_t own = begin + lane < end ? t.keys[begin + lane] : 0;
        const int64_t before = row_at(t, begin - 1), after = row_at(t, end);
        Columns sum{};
        bool first = true;  // no row has ended yet
        for (int64_t at = begin; at < end; ++at) {
            const uint64_t key = __shfl_sync(~0u, own, static_cast<int>(at - begin));
            const auto row = static_cast<int64_t>(key >> t.shift);
            if (row >= t.p.num_items) {
                break;
            }
            add(sum, load_term<T>(t, key));
            if (row_at(t, at + 1) == row && at + 1 < end) {
                continue;
            }
            if (first && row == before) {
                store(head_of(t, c), t.p.dim, sum);
            } else if (at + 1 == end && row == after) {
                store(tail_of(t, c), t.p.dim, sum);
            } else {
                store(table + row * t.p.dim, t.p.dim, sum);
            }
            sum = Columns{};
            first = false;
        }
    }
}

// A warp per chunk: where a row begins there and goes on behind it, all of its pieces.
template <typename T>
__global__ void __launch_bounds__(kThreads) join_kernel(const __grid_constant__ Terms t) {
    const int lane = static_cast<int>(threadIdx.x) % kWarp;
    const int64_t warps = static_cast<int64_t>(gridDim.x) * kWarps;
    const auto load = [&](const float* row) {
        Columns x;
#pragma unroll
        for (int c = 0; c < kEach; ++c) {
            const int d = lane + c * kWarp;
            x.at[c] = d < t.p.dim ? row[d] : 0.0f;
        }
        return x;
    };
    for (int64_t c = static_cast<int64_t>(blockIdx.x) * kWarps + threadIdx.x / kWarp;
         (c + 1) * kChunk < t.count; c += warps) {
        const int64_t row = row_at(t, (c + 1) * kChunk - 1);
        if (row >= t.p.num_items || row_at(t, (c + 1) * kChunk) != row ||
            row_at(t, c * kChunk - 1) == row) {
            continue;
        }
        Columns sum = load(tail_of(t, c));
        for (int64_t next = c + 1; row_at(t, next * kChunk) == row; ++next) {
            add(sum, load(head_of(t, next)));
        }
        store(static_cast<T*>(t.p.d_items) + row * t.p.dim, t.p.dim, sum);
    }
}

}  // namespace

void launch_scatter(const Params& p, const Space& s, cudaStream_t stream) {
    const int64_t terms = contributions(p);
    const int shift = bits_for(terms);
    const int64_t bytes = p.num_items * p.dim * (p.dtype == DType::kFloat32 ? 4 : 2);
    check(cudaMemsetAsync(p.d_items, 0, static_cast<size_t>(bytes), stream), "cudaMemsetAsync");
    launch("sampled_softmax keys", key_kernel, dim3(blocks_for(terms, kThreads)), kThreads, 0,
           stream, p, s, terms, shift);
    const Terms t{p, s,
                  launch_sort(s.words, terms, shift, shift + bits_for(p.num_items + 1), stream),
                  terms, shift};
    const dim3 grid(blocks_for(blocks_of(terms, kChunk), kWarps));
    for_dtype(p.dtype, [&](auto type) {
        using T = decltype(type);
        launch("sampled_softmax chunks", chunk_kernel<T>, grid, kThreads, 0, stream, t);
        launch("sampled_softmax join", join_kernel<T>, grid, kThreads, 0, stream, t);
    });
}

}  // namespace pylum::sampled_softmax
