// Gradients of attention on tiles of history: a block per tile of rows, a warp per 16. For dq the
// rows are queries and run over the keys they see; for dk and dv they are keys and run over the
// queries that see them, head after head. No sum is shared between blocks, so every order is fixed;
// the price is 7 products for each pair instead of 5. Bound by the matrix unit.
#pragma once

#include <type_traits>

#include "common/cuda/attention_backward_tile.h"
#include "common/cuda/launch.h"
#include "common/cuda/shared.h"

namespace pylum::cuda {

#ifdef __CUDA_ARCH_FEAT_SM90_ALL
constexpr bool kForSm90 = true;
#else
constexpr bool kForSm90 = false;
#endif

template <typename T, int kDim, bool kSilu, bool kBias, Gradient kGradient>
__global__ void __launch_bounds__(BackwardShape<T, kDim>::kThreads, kBias ? 1 : 0)
    backward_kernel(const __grid_constant__ AttentionGradients p, bool targets) {
    // What runs_on_sm90() says has kernels of its own: code that never runs would only be compiled.
    if constexpr (!kForSm90 || sizeof(T) == 4 || kDim > 128) {
        using Shape = BackwardShape<T, kDim>;
        using Tile = BackwardTile<T, kDim, kSilu, kBias, kGradient>;
        using Tiles = typename Tile::Tiles;
        PYLUM_SHARED(Tiles, tiles);
        const int head = static_cast<int>(blockIdx.y);
        const AttentionInputs& in = p.inputs.in;
        constexpr bool kOfQueries = kGradient == Gradient::kQueries;
        if (*p.inputs.batch.broken) {
            const int64_t first = static_cast<int64_t>(blockIdx.x) * Shape::kRows;
            const int64_t rows = p.inputs.batch.rows;
            if (kOfQueries) {
                store_nan<T>(p.dq, first, Shape::kRows, rows, in.heads, head, in.head_dim);
            }
            if (kGradient == Gradient::kKeys || kGradient == Gradient::kKeysAndValues) {
                store_nan<T>(p.dk, first, Shape::kRows, rows, in.kv_heads, head, in.head_dim);
            }
            if (kGradient == Gradient::kValues || kGradient == Gradient::kKeysAndValues) {
                store_nan<T>(p.dv, first, Shape::kRows, rows, in.kv_heads, head, in.value_dim);
            }
            return;
        }
        const TileRows rows = find_tile(p.inputs.batch, blockIdx.x, targets, Shape::kRows);
        if (rows.rows == 0) {
            return;
        }
        Tile tile(p, rows, tiles);
        if constexpr (kOfQueries) {
            tile.run_queries(targets);
        } else {
            tile.run_keys();
        }
    }
}

template <typename T, int kDim, bool kSilu, bool kBias>
void launch_backward_of(const AttentionGradients& p, cudaStream_t stream) {
    using Shape = BackwardShape<T, kDim>;
    const AttentionInputs& in = p.inputs.in;
    const auto go = [&](auto gradient, int64_t tiles, int64_t heads, bool targets) {
        constexpr Gradient kGradient = decltype(gradient)::value;
        static_assert(
            sizeof(BackwardTiles < T, kDim, kBias && kGradient == Gradient::kQueries >) <= 99 << 10,
            "more shared memory than a block of sm_86 has");
        launch("attention: backward", backward_kernel<T, kDim, kSilu, kBias, kGradient>,
               dim3(blocks_for(tiles, 1), static_cast<unsigned>(heads)), Shape::kThreads,
               sizeof(BackwardTiles < T, kDim, kBias && kGradient == Gradient::kQueries >), stream,
               p, targets);
    };
    const int64_t history = history_tiles_bound(p.inputs.batch, Shape::kRows);
    constexpr std::integral_constant<Gradient, Gradient::kQueries> queries;
    go(queries, history, in.heads, false);
    go(queries, target_tiles_bound(p.inputs.batch, Shape::kRows), in.heads, true);
    // Both sums of 256 columns would not fit the registers.
    if constexpr (kDim <= 128) {
        go(std::integral_constant<Gradient, Gradient::kKeysAndValues>(), history, in.kv_heads,
           false);
    } else {
        go(std::integral_constant<Gradient, Gradient::kKeys>(), history, in.kv_heads, false);
        go(std::integral_constant<Gradient, Gradient::kValues>(), history, in.kv_heads, false);
    }
}

// The table of instantiations, as of the forward pass.
template <typename T, int kDim>
void launch_backward_wide(const AttentionGradients& p, cudaStream_t stream) {
    if (!p.inputs.in.silu) {
        launch_backward_of<T, kDim, false, false>(p, stream);
    } else if (sizeof(T) == 4 || p.inputs.in.bias.given()) {
        launch_backward_of<T, kDim, true, true>(p, stream);
    } else {
        launch_backward_of<T, kDim, true, sizeof(T) == 4>(p, stream);
    }
}

template <typename T>
void launch_backward_as(const AttentionGradients& p, cudaStream_t stream) {
    const AttentionInputs& in = p.inputs.in;
    const int64_t dim = in.head_dim > in.value_dim ? in.head_dim : in.value_dim;
    if (dim <= 64) {
        launch_backward_wide<T, 64>(p, stream);
    } else if (dim <= 128) {
        launch_backward_wide<T, 128>(p, stream);
    } else {
        launch_backward_wide<T, 256>(p, stream);
    }
}

}  // namespace pylum::cuda
