// A block per 32 x 32 tile of a row's lower triangle, a thread per 4 x 4 pairs. Each vector is read
// once for every 32 others: bound by memory up to some 60 vectors, then by count^2 * dim / 2
// multiply-adds a row.
#include "common/cuda/launch.h"
#include "common/cuda/numeric.h"
#include "common/cuda/shared.h"
#include "dot_interaction/cuda/tile.h"

namespace pylum::dot_interaction {
namespace {

using namespace cuda;

struct Tiles {
    float left[kTile][kTile + 1];   // [vector, element]
    float right[kTile][kTile + 1];  // unused on the diagonal
};

template <typename T>
__device__ void forward_tile(const Params& p, const T* x, T* out, int64_t first_i, int64_t first_j,
                             Tiles& tiles) {
    float sums[kEach][kEach] = {};
    const int ty = static_cast<int>(threadIdx.x) / kSide,
              tx = static_cast<int>(threadIdx.x) % kSide;
    const auto& right = first_i == first_j ? tiles.left : tiles.right;
    for (int64_t d = 0; d < p.dim; d += kTile) {
        __syncthreads();  // all have read the elements before
        load_square(tiles.left, x, p.dim, first_i, p.count, d, p.dim);
        if (first_i != first_j) {
            load_square(tiles.right, x, p.dim, first_j, p.count, d, p.dim);
        }
        __syncthreads();
        const int depth = static_cast<int>(p.dim - d < kTile ? p.dim - d : kTile);
        for (int e = 0; e < depth; ++e) {
            float a[kEach], b[kEach];
#pragma unroll
            for (int i = 0; i < kEach; ++i) {
                a[i] = tiles.left[ty + kSide * i][e];
                b[i] = right[tx + kSide * i][e];
            }
#pragma unroll
            for (int i = 0; i < kEach; ++i) {
#pragma unroll
                for (int j = 0; j < kEach; ++j) {
                    sums[i][j] += a[i] * b[j];
                }
            }
        }
    }
#pragma unroll
    for (int i = 0; i < kEach; ++i) {
#pragma unroll
        for (int j = 0; j < kEach; ++j) {
            const int64_t row = first_i + ty + kSide * i, column = first_j + tx + kSide * j;
            if (row < p.count && column < row) {
                out[row * (row - 1) / 2 + column] = from_float<T>(sums[i][j]);
            }
        }
    }
}

template <typename T>
__global__ void __launch_bounds__(kThreads) forward_kernel(const Params p, int64_t tiles_a_row) {
    PYLUM_SHARED(Tiles, tiles);
    const int64_t pairs = p.count * (p.count - 1) / 2;
    for (int64_t unit = blockIdx.x; unit < p.batch * tiles_a_row; unit += gridDim.x) {
        const int64_t row = unit / tiles_a_row;
        int64_t i = 0, left = unit % tiles_a_row;
        for (; left > i; ++i) {
            left -= i + 1;
        }
        forward_tile<T>(p, static_cast<const T*>(p.vectors) + row * p.count * p.dim,
                        static_cast<T*>(p.out) + row * pairs, i * kTile, left * kTile, tiles);
    }
}

}  // namespace

void launch_forward(const Params& p, cudaStream_t stream) {
    const int64_t side = (p.count + kTile - 1) / kTile, tiles_a_row = side * (side + 1) / 2;
    for_dtype(p.dtype, [&](auto type) {
        launch("dot_interaction", forward_kernel<decltype(type)>,
               dim3(blocks_for(p.batch * tiles_a_row, 1)), kThreads, sizeof(Tiles), stream, p,
               tiles_a_row);
    });
}

}  // namespace pylum::dot_interaction
