// The passes over all pairs of queries and shared candidates: a block of threads owns 64 rows of
// one side, a warp 16 of them, and meets a part of the other side 64 rows at a time. Logits live in
// registers only: 2 * queries * candidates * dim flops for the sums, twice that for each gradient.
#pragma once

#include "common/cuda/gathered_tile.h"
#include "common/cuda/launch.h"
#include "common/cuda/shared.h"
#include "sampled_softmax/cuda/rows.h"

namespace pylum::sampled_softmax {
namespace {

template <typename T, int kDim>
struct Shape {
    static constexpr int kRowBytes = kDim * static_cast<int>(sizeof(T));
    static constexpr int kWarps = kRowBytes > 512 ? 2 : 4;
    static constexpr int kRows = 16 * kWarps;
    static constexpr int kThreads = 32 * kWarps;
    static constexpr int kBuffers = kRowBytes <= 256 ? 2 : 1;
};

// Of the rows of the other side: of candidates id and bias; of queries the rest, id of the target.
struct Others {
    int64_t id[kBlock], target[kBlock];
    float bias[kBlock], shift[kBlock], share[kBlock], others[kBlock];
};

template <typename T, int kDim>
struct Tiles {
    T own[Shape<T, kDim>::kRows * kDim];
    T other[Shape<T, kDim>::kBuffers][kBlock * kDim];
    Others rows[Shape<T, kDim>::kBuffers];
};

struct Pass {
    Params p;
    Space s;
    int64_t own, others, part_rows;
};

template <typename T, int kDim, Of kOf>
class PassTile {
  public:
    using S = Shape<T, kDim>;
    static constexpr bool kOwnsQueries = kOf != Of::kItems;
    static constexpr int kColumns = kBlock / 8;

    __device__ __forceinline__ PassTile(const Pass& pass, Tiles<T, kDim>& shared)
        : a(pass), p(pass.p), tiles(shared) {
        first_own = static_cast<int64_t>(blockIdx.x) * S::kRows;
        begin = static_cast<int64_t>(blockIdx.y) * a.part_rows;
        end = min(begin + a.part_rows, a.others);
        load<S::kRows>(tiles.own, kOwnsQueries, first_own, a.own);
#pragma unroll
        for (int h = 0; h < 2; ++h) {
            const int64_t i = first_own + warp_row() + g() + 8 * h;
            own_id[h] = kNoId;
            own_bias[h] = 0.0f;
            own_shift[h] = 0.0f;
            if (i < a.own) {
                const int64_t row = kOwnsQueries ? target_row(i) : candidate_row(p, i);
                own_id[h] = item_id(p, row);
                if (kOf == Of::kItems) {
                    own_bias[h] = item_bias(p, row);
                } else if (kOf == Of::kQueries) {
                    own_shift[h] = a.s.shifts[i];
                }
            }
        }
    }

    __device__ __forceinline__ void run() {
        if (S::kBuffers == 2 && begin < end) {
            load_others(begin, 0);
        }
        copy_async_commit();
        int buffer = 0;
        for (int64_t first = begin; first < end; first += kBlock) {
            if constexpr (S::kBuffers == 2) {
                if (first + kBlock < end) {
                    load_others(first + kBlock, 1 - buffer);
                }
            } else {
                load_others(first, 0);
            }
            copy_async_commit();
            copy_async_wait<S::kBuffers - 1>();
            __syncthreads();
            meet(first, buffer);
            __syncthreads();  // all have read the rows
            buffer = S::kBuffers - 1 - buffer;
        }
        copy_async_wait<0>();
        kOf == Of::kSums ? store_sums() : store_gradients();
    }

  private:
    __device__ __forceinline__ static int warp_row() {
        return static_cast<int>(threadIdx.x) / 32 * 16;
    }
    __device__ __forceinline__ static int g() { return static_cast<int>(threadIdx.x) % 32 / 4; }
    __device__ __forceinline__ static int t() { return static_cast<int>(threadIdx.x) % 4; }

    // Of a query; -1 where items has no such row, which is noted elsewhere.
    __device__ __forceinline__ int64_t target_row(int64_t n) const {
        const int64_t row = p.targets[n];
        return row >= 0 && row < p.num_items ? row : -1;
    }

    template <int kRows>
    __device__ __forceinline__ void load(T* to, bool queries, int64_t first, int64_t count) {
        const int dim = static_cast<int>(p.dim);
        if (queries) {
            gather_tile<T, kDim, kRows, S::kThreads>(
                to, static_cast<const T*>(p.queries), p.queries_stride, 0, dim,
                wide_rows<T>(p.queries, p.queries_stride, 0, dim), [&](int r) {
                    // A query that adds nothing must not spoil the sums of d_items as 0 * NaN.
                    const int64_t n = first + r;
                    const bool skip = n >= count || (kOf == Of::kItems && a.s.shares[n] == 0.0f);
                    return skip ? int64_t{-1} : n;
                });
        } else {
            gather_tile<T, kDim, kRows, S::kThreads>(
                to, static_cast<const T*>(p.items), p.items_stride, 0, dim,
                wide_rows<T>(p.items, p.items_stride, 0, dim), [&](int r) {
                    return first + r < count ? candidate_row(p, first + r) : int64_t{-1};
                });
        }
    }

    __device__ __forceinline__ void load_others(int64_t first, int buffer) {
        load<kBlock>(tiles.other[buffer], !kOwnsQueries, first, end);
        Others& o = tiles.rows[buffer];
        for (int r = threadIdx.x; r < kBlock; r += S::kThreads) {
            const int64_t i = first + r;
            const bool here = i < end;
            if (kOwnsQueries) {
                const int64_t row = here ? candidate_row(p, i) : -1;
                o.id[r] = item_id(p, row);
                o.bias[r] = here ? item_bias(p, row) : INFINITY;
            } else {
                const int64_t row = here ? target_row(i) : -1;
                o.id[r] = item_id(p, row);
                o.target[r] = row;
                o.shift[r] = here ? a.s.shifts[i] : 0.0f;
                o.share[r] = here ? a.s.shares[i] : 0.0f;
                o.others[r] = here ? a.s.others[i] : 0.0f;
            }
        }
    }

    __device__ __forceinline__ void meet(int64_t first, int buffer) {
        float scores[kColumns][4] = {};
        add_rows_by_rows<T, kDim, kColumns>(scores, tiles.own, warp_row(), tiles.other[buffer]);
        const Others& o = tiles.rows[buffer];
#pragma unroll
        for (int n = 0; n < kColumns; ++n) {
#pragma unroll
            for (int e = 0; e < 4; ++e) {
                const int h = e / 2, column = 8 * n + 2 * t() + e % 2;
                const bool masked = own_id[h] == o.id[column] && own_id[h] != kNoId;
                const float bias = kOwnsQueries ? o.bias[column] : own_bias[h];
                const float logit =
                    masked ? -INFINITY : scores[n][e] * p.inverse_temperature - bias;
                if constexpr (kOf == Of::kSums) {
                    scores[n][e] = logit;
                } else {
                    const float shift = kOwnsQueries ? own_shift[h] : o.shift[column];
                    float weight = logit == -INFINITY ? 0.0f : exp_fast(logit - shift);
                    if constexpr (kOf == Of::kItems) {
                        const int64_t item = first_own + warp_row() + g() + 8 * h;
                        const bool target = !p.negatives && o.target[column] == item;
                        const float share = o.share[column];
                        weight =
                            share == 0.0f ? 0.0f : (target ? -o.others[column] : weight) * share;
                    }
                    scores[n][e] = weight;
                }
            }
        }
        if constexpr (kOf == Of::kSums) {
            add_exponentials(scores);
        } else {
            add_weighted<T, kDim, kColumns>(sums, scores, tiles.other[buffer]);
        }
    }

    // Every thread keeps the largest logit and the sum of its own columns.
    __device__ __forceinline__ void add_exponentials(const float (&logits)[kColumns][4]) {
#pragma unroll
        for (int h = 0; h < 2; ++h) {
            float peak = own_peak[h];
#pragma unroll
            for (int n = 0; n < kColumns; ++n) {
                peak = fmaxf(peak, fmaxf(logits[n][2 * h], logits[n][2 * h + 1]));
            }
            float sum = rescaled(own_sum[h], own_peak[h], peak);
#pragma unroll
            for (int n = 0; n < kColumns; ++n) {
#pragma unroll
                for (int e = 0; e < 2; ++e) {
                    const float x = logits[n][2 * h + e];
                    sum += x == -INFINITY ? 0.0f : exp_fast(x - peak);
                }
            }
            own_peak[h] = peak;
            own_sum[h] = sum;
        }
    }

    __device__ __forceinline__ static float rescaled(float sum, float from, float to) {
        return from == to ? sum : from == -INFINITY ? sum : sum * exp_fast(from - to);
    }

    __device__ __forceinline__ void store_sums() {
#pragma unroll
        for (int h = 0; h < 2; ++h) {
            const float peak = quad_max(own_peak[h]);
            const float sum = quad_sum(rescaled(own_sum[h], own_peak[h], peak));
            const int64_t n = first_own + warp_row() + g() + 8 * h;
            if (n < a.own && t() == 0) {
                float* to = a.s.sums + (blockIdx.y * a.own + n) * 2;
                to[0] = peak;
                to[1] = sum;
            }
        }
    }

    __device__ __forceinline__ void store_gradients() {
        float* to = kOwnsQueries ? a.s.d_queries : a.s.d_candidates;
        const int dim = static_cast<int>(p.dim);
#pragma unroll
        for (int h = 0; h < 2; ++h) {
            const int64_t i = first_own + warp_row() + g() + 8 * h;
            if (i >= a.own) {
                continue;
            }
            float* row = to + (blockIdx.y * a.own + i) * dim;
#pragma unroll
            for (int n = 0; n < kDim / 8; ++n) {
#pragma unroll
                for (int e = 0; e < 2; ++e) {
                    const int column = 8 * n + 2 * t() + e;
                    if (column < dim) {
                        row[column] = sums[n][2 * h + e];
                    }
                }
            }
        }
    }

    const Pass& a;
    const Params& p;
    Tiles<T, kDim>& tiles;
    int64_t first_own, begin, end;
    int64_t own_id[2];
    float own_bias[2], own_shift[2];
    float own_peak[2] = {-INFINITY, -INFINITY}, own_sum[2] = {0.0f, 0.0f};
    float sums[kOf == Of::kSums ? 1 : kDim / 8][4] = {};
};

template <typename T, int kDim, Of kOf>
__global__ void __launch_bounds__(Shape<T, kDim>::kThreads, 2)
    pass_kernel(const __grid_constant__ Pass pass) {
    using Shared = Tiles<T, kDim>;
    PYLUM_SHARED(Shared, tiles);
    PassTile<T, kDim, kOf>(pass, tiles).run();
}

template <typename T, int kDim, Of kOf>
void launch_pass(const Params& p, const Space& s, cudaStream_t stream) {
    const bool queries = kOf != Of::kItems;
    const Parts parts = queries ? parts_of_candidates(p) : parts_of_queries(p);
    const Pass pass{p, s, queries ? p.num_queries : p.candidates(),
                    queries ? p.candidates() : p.num_queries, parts.rows};
    const dim3 grid(blocks_for(pass.own, Shape<T, kDim>::kRows),
                    static_cast<unsigned>(parts.count));
    launch("sampled_softmax pass", pass_kernel<T, kDim, kOf>, grid, Shape<T, kDim>::kThreads,
           sizeof(Tiles<T, kDim>), stream, pass);
}

template <typename T, Of kOf>
void launch_pass(const Params& p, const Space& s, cudaStream_t stream) {
    p.dim <= 64    ? launch_pass<T, 64, kOf>(p, s, stream)
    : p.dim <= 128 ? launch_pass<T, 128, kOf>(p, s, stream)
                   : launch_pass<T, 256, kOf>(p, s, stream);
}

template <typename T>
void launch_pass(const Params& p, const Space& s, Of of, cudaStream_t stream) {
    of == Of::kSums      ? launch_pass<T, Of::kSums>(p, s, stream)
    : of == Of::kQueries ? launch_pass<T, Of::kQueries>(p, s, stream)
                         : launch_pass<T, Of::kItems>(p, s, stream);
}

}  // namespace
}  // namespace pylum::sampled_softmax
