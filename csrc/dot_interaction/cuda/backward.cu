// A block per 32 vectors of a row by 32 elements, a thread per 4 x 4: the product of the symmetric
// matrix of dout with the vectors, without the diagonal. Bound by count^2 * dim multiply-adds a
// row.
#include "common/cuda/launch.h"
#include "common/cuda/shared.h"
#include "dot_interaction/cuda/tile.h"

namespace pylum::dot_interaction {
namespace {

using namespace cuda;

struct Tiles {
    float gradients[kTile][kTile + 1];  // [own vector, other vector]
    float vectors[kTile][kTile + 1];    // [other vector, element]
};

template <typename T>
__device__ void load_gradients(float (&to)[kTile][kTile + 1], const T* dout, int64_t count,
                               int64_t first_i, int64_t first_j) {
    for (int at = threadIdx.x; at < kTile * kTile; at += kThreads) {
        const int64_t i = first_i + at / kTile, j = first_j + at % kTile;
        const int64_t row = i > j ? i : j, column = i > j ? j : i;
        const bool inside = row < count && i != j;
        to[at / kTile][at % kTile] = inside ? to_float(dout[row * (row - 1) / 2 + column]) : 0.0f;
    }
}

template <typename T>
__device__ void backward_tile(const Params& p, const T* x, const T* dout, T* dx, int64_t first_i,
                              int64_t first_d, Tiles& tiles) {
    float sums[kEach][kEach] = {};
    const int ty = static_cast<int>(threadIdx.x) / kSide,
              tx = static_cast<int>(threadIdx.x) % kSide;
    for (int64_t first_j = 0; first_j < p.count; first_j += kTile) {
        __syncthreads();  // all have read the vectors before
        load_gradients(tiles.gradients, dout, p.count, first_i, first_j);
        load_square(tiles.vectors, x, p.dim, first_j, p.count, first_d, p.dim);
        __syncthreads();
        const int64_t others = p.count - first_j;
        const int depth = static_cast<int>(others < kTile ? others : kTile);
        for (int e = 0; e < depth; ++e) {
            float a[kEach], b[kEach];
#pragma unroll
            for (int i = 0; i < kEach; ++i) {
                a[i] = tiles.gradients[ty + kSide * i][e];
                b[i] = tiles.vectors[e][tx + kSide * i];
            }
#pragma unroll
            for (int i = 0; i < kEach; ++i) {
                // A vector that is not finite must not reach its own gradient as 0 * NaN.
                const bool other = first_i + ty + kSide * i != first_j + e;
#pragma unroll
                for (int j = 0; j < kEach; ++j) {
                    sums[i][j] += other ? a[i] * b[j] : 0.0f;
                }
            }
        }
    }
#pragma unroll
    for (int i = 0; i < kEach; ++i) {
#pragma unroll
        for (int j = 0; j < kEach; ++j) {
            const int64_t row = first_i + ty + kSide * i, column = first_d + tx + kSide * j;
            if (row < p.count && column < p.dim) {
                dx[row * p.dim + column] = from_float<T>(sums[i][j]);
            }
        }
    }
}

template <typename T>
__global__ void __launch_bounds__(kThreads)
    backward_kernel(const Params p, int64_t down, int64_t across) {
    PYLUM_SHARED(Tiles, tiles);
    const int64_t pairs = p.count * (p.count - 1) / 2;
    for (int64_t unit = blockIdx.x; unit < p.batch * down * across; unit += gridDim.x) {
        const int64_t row = unit / (down * across), at = row * p.count * p.dim;
        backward_tile<T>(p, static_cast<const T*>(p.vectors) + at,
                         static_cast<const T*>(p.dout) + row * pairs,
                         static_cast<T*>(p.dvectors) + at, unit / across % down * kTile,
                         unit % across * kTile, tiles);
    }
}

}  // namespace

void launch_backward(const Params& p, cudaStream_t stream) {
    const int64_t down = (p.count + kTile - 1) / kTile, across = (p.dim + kTile - 1) / kTile;
    for_dtype(p.dtype, [&](auto type) {
        launch("dot_interaction backward", backward_kernel<decltype(type)>,
               dim3(blocks_for(p.batch * down * across, 1)), kThreads, sizeof(Tiles), stream, p,
               down, across);
    });
}

}  // namespace pylum::dot_interaction
