// Tiles of 32 x 32 elements in shared memory, for blocks of 64 threads.
#pragma once

#include "common/cuda/numeric.h"
#include "dot_interaction/dot_interaction.h"

namespace pylum::dot_interaction {
namespace {

constexpr int kTile = 32;
constexpr int kSide = 8;  // threads along a side of a tile
constexpr int kThreads = kSide * kSide;
constexpr int kEach = kTile / kSide;  // of a thread, along a side

// Rows [first_row, rows) and columns [first_column, columns) of x; zeros past them.
template <typename T>
__device__ inline void load_square(float (&to)[kTile][kTile + 1], const T* x, int64_t stride,
                                   int64_t first_row, int64_t rows, int64_t first_column,
                                   int64_t columns) {
    for (int i = threadIdx.x; i < kTile * kTile; i += kThreads) {
        const int64_t row = first_row + i / kTile, column = first_column + i % kTile;
        const bool inside = row < rows && column < columns;
        to[i / kTile][i % kTile] = inside ? cuda::to_float(x[row * stride + column]) : 0.0f;
    }
}

}  // namespace
}  // namespace pylum::dot_interaction
