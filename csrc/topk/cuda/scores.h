// Scores of a tile of queries with 64 items, 128 bytes of depth at a time, by four warps. A score
// is one chain of sums over depth that depends on nothing but its query and its item.
#pragma once

#include "common/cuda/gathered_tile.h"
#include "topk/cuda/split.h"

namespace pylum::topk {
namespace {

using namespace cuda;

constexpr int kThreads = 128;

// Elements in 128 bytes.
template <typename T>
constexpr int kDepth = 128 / static_cast<int>(sizeof(T));

// On the matrix unit, a warp 16 queries.
template <typename T, int kQueries>
struct Scores {
    static constexpr int kItemWarps = 4 / (kQueries / 16);
    static constexpr int kWarpItems = kItems / kItemWarps;
    float sums[kWarpItems / 8][4];

    __device__ __forceinline__ void clear() {
#pragma unroll
        for (int n = 0; n < kWarpItems / 8; ++n) {
#pragma unroll
            for (int i = 0; i < 4; ++i) {
                sums[n][i] = 0.0f;
            }
        }
    }

    __device__ __forceinline__ static int first_query() {
        return static_cast<int>(threadIdx.x) / 32 / kItemWarps * 16;
    }
    __device__ __forceinline__ static int first_item() {
        return static_cast<int>(threadIdx.x) / 32 % kItemWarps * kWarpItems;
    }

    __device__ __forceinline__ void add(const T* queries, const T* items) {
        add_rows_by_rows<T, kDepth<T>, kWarpItems / 8>(sums, queries, first_query(),
                                                       items + first_item() * kDepth<T>);
    }

    // f(query, item, score) for the scores of this thread.
    template <typename F>
    __device__ __forceinline__ void each(const F& f) const {
        const int g = static_cast<int>(threadIdx.x) % 32 / 4, t = static_cast<int>(threadIdx.x) % 4;
#pragma unroll
        for (int n = 0; n < kWarpItems / 8; ++n) {
#pragma unroll
            for (int i = 0; i < 4; ++i) {
                f(first_query() + g + i / 2 * 8, first_item() + 8 * n + 2 * t + i % 2, sums[n][i]);
            }
        }
    }
};

// float32 in multiply-adds, which keep infinities: a thread every eighth query and every 16th item.
template <int kQueries>
struct Scores<float, kQueries> {
    static constexpr int kOwnQueries = kQueries / 8, kOwnItems = kItems / 16;
    float sums[kOwnQueries][kOwnItems];

    __device__ __forceinline__ void clear() {
#pragma unroll
        for (int q = 0; q < kOwnQueries; ++q) {
#pragma unroll
            for (int i = 0; i < kOwnItems; ++i) {
                sums[q][i] = 0.0f;
            }
        }
    }

    __device__ __forceinline__ static int first_query() {
        return static_cast<int>(threadIdx.x) / 16;
    }
    __device__ __forceinline__ static int first_item() {
        return static_cast<int>(threadIdx.x) % 16;
    }

    __device__ __forceinline__ void add(const float* queries, const float* items) {
        constexpr int kDim = kDepth<float>;
#pragma unroll 2
        for (int d = 0; d < kDim; d += 4) {
            Pack<float, 4> a[kOwnQueries], b[kOwnItems];
#pragma unroll
            for (int q = 0; q < kOwnQueries; ++q) {
                a[q] = load_pack<4>(queries + tile_place<float, kDim>(first_query() + 8 * q, d));
            }
#pragma unroll
            for (int i = 0; i < kOwnItems; ++i) {
                b[i] = load_pack<4>(items + tile_place<float, kDim>(first_item() + 16 * i, d));
            }
#pragma unroll
            for (int e = 0; e < 4; ++e) {
#pragma unroll
                for (int q = 0; q < kOwnQueries; ++q) {
#pragma unroll
                    for (int i = 0; i < kOwnItems; ++i) {
                        sums[q][i] = __fmaf_rn(a[q].at[e], b[i].at[e], sums[q][i]);
                    }
                }
            }
        }
    }

    template <typename F>
    __device__ __forceinline__ void each(const F& f) const {
#pragma unroll
        for (int q = 0; q < kOwnQueries; ++q) {
#pragma unroll
            for (int i = 0; i < kOwnItems; ++i) {
                f(first_query() + 8 * q, first_item() + 16 * i, sums[q][i]);
            }
        }
    }
};

}  // namespace
}  // namespace pylum::topk
