// Tiles of rows that need not be neighbours, in the order of attention_tile.h.
#pragma once

#include "common/cuda/attention_tile.h"

namespace pylum::cuda {

// Columns [first_column, first_column + kDim) of the rows row_of(0 .. kRows - 1) of x to a tile,
// behind the caller's back where `wide` says that all is aligned to 16 bytes; zeros past `dim` and
// where row_of() is negative.
template <typename T, int kDim, int kRows, int kThreads, typename RowOf>
__device__ __forceinline__ void gather_tile(T* to, const T* x, int64_t stride, int64_t first_column,
                                            int64_t dim, bool wide, const RowOf& row_of) {
    constexpr int kChunks = kDim / kPack<T>;
    if (wide) {
#pragma unroll 4
        for (int i = threadIdx.x; i < kRows * kChunks; i += kThreads) {
            const int column = i % kChunks * kPack<T>;
            const int64_t row = row_of(i / kChunks);
            const bool valid = row >= 0 && first_column + column < dim;
            copy_async16(to + tile_place<T, kDim>(i / kChunks, column),
                         valid ? x + row * stride + first_column + column : x, valid);
        }
        return;
    }
#pragma unroll 1
    for (int i = threadIdx.x; i < kRows * kChunks; i += kThreads) {
        const int column = i % kChunks * kPack<T>;
        const int64_t row = row_of(i / kChunks);
        Pack<T, kPack<T>> pack;
#pragma unroll
        for (int e = 0; e < kPack<T>; ++e) {
            const bool inside = row >= 0 && first_column + column + e < dim;
            pack.at[e] = inside ? x[row * stride + first_column + column + e] : from_float<T>(0.0f);
        }
        store_pack<kPack<T>>(to + tile_place<T, kDim>(i / kChunks, column), pack);
    }
}

}  // namespace pylum::cuda
