// Products of rows that are not all finite and that not every row of a warpgroup sees: 0 * NaN is
// NaN, so 16 at a time are multiplied without what is not finite, which is then added to the sums
// of the rows that see it.
#pragma once

#include "common/cuda/attention_producer_sm90.h"

namespace pylum::cuda::sm90 {

// Rows 16 k to 16 k + 15 of a tile, zeros for what is not finite.
template <typename T, int kDim>
__device__ __forceinline__ void copy_finite(T* to, const T* rows, int k, int thread) {
    constexpr int kPacks = 16 * kPart / kPack<T>;
#pragma unroll 1
    for (int i = thread; i < kDim / kPart * kPacks; i += kGroup) {
        const int at = i / kPacks * kBlockKeys * kPart + k * 16 * kPart + i % kPacks * kPack<T>;
        auto pack = load_pack<kPack<T>>(rows + at);
#pragma unroll
        for (int e = 0; e < kPack<T>; ++e) {
            if (!finite(to_float(pack.at[e]))) {
                pack.at[e] = from_float<T>(0.0f);
            }
        }
        store_pack<kPack<T>>(to + i * kPack<T>, pack);
    }
}

// What is not finite of 16 rows, to the sums of the rows that see it.
template <typename T, int kDim>
__device__ __forceinline__ void add_broken(float (&to)[kDim / 8][4], const uint32_t (&left)[4],
                                           uint32_t seen, const T* rows, int first, int lane) {
#pragma unroll 1
    for (int row = 0; row < 16; ++row) {
        const int from = lane / 4 * 4 + row % 8 / 2;
        const uint32_t theirs = __shfl_sync(~0u, seen, from) >> (row / 8 * 4 + row % 2);
        float factor[2];
#pragma unroll
        for (int h = 0; h < 2; ++h) {
            const uint32_t low = left[h], high = left[2 + h];
            const uint32_t word = __shfl_sync(~0u, row < 8 ? low : high, from);
            Pack<T, 2> pair;
            memcpy(&pair, &word, sizeof pair);
            const float even = to_float(pair.at[0]), odd = to_float(pair.at[1]);
            factor[h] = row % 2 ? odd : even;
        }
#pragma unroll
        for (int n = 0; n < kDim / 8; ++n) {
            __syncwarp();  // one load after the other: else all are held at once
            const auto pair =
                load_pack<2>(rows + place_of<kDim>(first + row, 8 * n + lane % 4 * 2));
#pragma unroll
            for (int i = 0; i < 4; ++i) {
                const float x = to_float(pair.at[i % 2]);
                const bool adds = !finite(x) && (theirs >> (i / 2 * 2) & 1u);
                to[n][i] = adds ? to[n][i] + factor[i / 2] * x : to[n][i];
            }
        }
    }
}

}  // namespace pylum::cuda::sm90
