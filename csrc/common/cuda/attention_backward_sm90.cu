// Gradients of attention on sm_90a, heads of up to 128: a block per tile of 128 rows, two
// warpgroups multiply for 64 rows each, one brings what they meet by the copy engine, up to four
// blocks of 64 ahead. For dq the rows are queries and meet the keys they see; for dk and dv
// they are keys and meet the queries that see them.
//
// A sum belongs to one block, so its order is fixed. The two passes repeat the scores and dout * v:
// 7 products for a pair instead of 5. The alternatives lose more: blocks that pass dq on from one
// to the next, in turn, wait for each other, and parts of dq for each block of keys take memory
// that grows with the square of a sequence. Weights and score gradients go on to the next product
// in registers, so shared memory is written by the copy engine alone. Bound by the matrix unit, 14
// * rows * keys * head_dim, and at 64 columns by the arithmetic of a score too.
//
// With a bias the pass of dq also leaves each block's score gradients in shared memory, from where
// its warpgroup sums them into the tables: about as many instructions as the rest of the pass.
#include "common/cuda/attention_backward_consumer_sm90.h"
#include "common/cuda/attention_sm90.h"
#include "common/cuda/launch.h"
#include "common/cuda/shared.h"

namespace pylum::cuda {
namespace {

using namespace sm90;

template <typename T, int kDim, bool kSilu, bool kBias, bool kOfQueries>
__global__ void __launch_bounds__(kThreads, 1)
    backward_sm90_kernel(const __grid_constant__ AttentionGradients p,
                         const __grid_constant__ BackwardSources sources, bool targets) {
#if !defined(__CUDA_ARCH__) || defined(__CUDA_ARCH_FEAT_SM90_ALL)
    using Tiles = BackwardTiles<T, kDim, kBias, kOfQueries>;
    PYLUM_SHARED(Tiles, tiles);
    constexpr int kRows = kGroups * kGroupRows;
    // Of the producers, who need more where they bring a bias; dk and dv of 128 columns spare none.
    constexpr int kFew = kBias && (kOfQueries || kDim == 64) ? 56 : 40;
    const AttentionInputs& in = p.inputs.in;
    const DeviceBatch& d = p.inputs.batch;
    const int head = static_cast<int>(blockIdx.y), thread = static_cast<int>(threadIdx.x);
    if (*d.broken) {
        const int64_t first = static_cast<int64_t>(blockIdx.x) * kRows;
        if constexpr (kOfQueries) {
            store_nan<T>(p.dq, first, kRows, d.rows, in.heads, head, in.head_dim);
        } else {
            store_nan<T>(p.dk, first, kRows, d.rows, in.kv_heads, head, in.head_dim);
            store_nan<T>(p.dv, first, kRows, d.rows, in.kv_heads, head, in.value_dim);
        }
        return;
    }
    TileRows tile = find_tile(d, blockIdx.x, targets, kRows);
    if (tile.rows == 0) {
        return;
    }
    const Sequence& s = d.sequences[tile.sequence];
    if constexpr (kOfQueries) {
        if (thread < kRows) {
            const int64_t at = tile.first + thread;
            tiles.spans[thread] = thread >= tile.rows ? RowSpan{0, 0, 0, 0, 0, true}
                                  : targets           ? target_row_span(d, in.batch, s, at)
                                                      : history_row_span(in.batch, s, at);
        }
        __syncthreads();
        if (thread / 32 <= kGroups) {
            const int warp = thread / 32;
            const int rows = warp < kGroups ? rows_of_group(tile, warp).rows : tile.rows;
            const Limits limits = tile_limits(tiles.spans + warp % kGroups * kGroupRows, rows,
                                              static_cast<int>(s.context));
            if (thread % 32 == 0) {
                tiles.limits[warp] = limits;
            }
        }
    } else {
        tile = mirrored(tile, s);
    }
    if (thread == 0) {
        tiles.tile = tile;
        tiles.context = static_cast<int>(s.context);
        tiles.first_row = s.first_row + tile.first + (kOfQueries && targets ? s.history : 0);
        for (int i = 0; i < Tiles::kStages; ++i) {
            barrier_init(&tiles.full[i], 2);
            barrier_init(&tiles.empty[i], 4 * kGroups);
        }
        barrier_init(&tiles.rows_full, tile.rows > kGroupRows ? 2 : 1);
        barrier_init(&tiles.landed, 1);
        fence_barriers();
    }
    if constexpr (kBias) {
        const int64_t* keys = key_times(p.inputs, s, false);
        const int64_t first_row = s.first_row + tile.first + (targets ? s.history : 0);
        const int64_t* times = kOfQueries ? query_clocks(p.inputs, first_row)
                               : keys     ? keys + tile.first
                                          : nullptr;
        const bool far = __syncthreads_or(tiles.bias.tile.fill(p.inputs, times, tile.rows));
        if (thread == 0) {
            tiles.bias.tile.near = !far && !targets;  // targets' positions do not follow each other
        }
    }
    __syncthreads();
    if (thread < kGroup) {
        fewer_registers<kFew>();
        BackwardProducer<T, kDim, kSilu, kBias, kOfQueries> producer(p, sources, tile, tiles);
        if constexpr (kOfQueries) {
            producer.run_queries(head);
        } else {
            producer.run_keys(head);
        }
    } else {
        more_registers<kFew == 40 ? 232 : 224>();
        const int group = thread / kGroup - 1;
        BackwardConsumer<T, kDim, kSilu, kBias, kOfQueries>(p, group, targets, head, tiles).run();
    }
#endif
}

template <typename T, int kDim, bool kSilu, bool kBias>
void launch_of(const AttentionGradients& p, cudaStream_t stream) {
    const AttentionInputs& in = p.inputs.in;
    const DeviceBatch& d = p.inputs.batch;
    const BackwardSources sources{
        source_of_rows(in.q, in.head_dim, in.heads, d.rows, in.q_row, in.q_head),
        source_of_rows(p.dout, in.value_dim, in.heads, d.rows, p.dout_row, p.dout_head),
        source_of_rows(in.k, in.head_dim, in.kv_heads, d.rows, in.k_row, in.k_head),
        source_of_rows(in.v, in.value_dim, in.kv_heads, d.rows, in.v_row, in.v_head)};
    const auto go = [&](auto kernel, size_t shared, int64_t tiles, int64_t heads, bool targets) {
        launch("attention: backward_sm90", kernel,
               dim3(blocks_for(tiles, 1), static_cast<unsigned>(heads)), kThreads, shared, stream,
               p, sources, targets);
    };
    const int64_t history = history_tiles_bound(d, kSm90TileRows);
    constexpr size_t kOfQueries = sizeof(BackwardTiles<T, kDim, kBias, true>);
    constexpr size_t kOfKeys = sizeof(BackwardTiles<T, kDim, kBias, false>);
    static_assert(kOfQueries <= 227 << 10 && kOfKeys <= 227 << 10,
                  "more shared memory than a block of sm_90 has");
    const auto queries = backward_sm90_kernel<T, kDim, kSilu, kBias, true>;
    go(queries, kOfQueries, history, in.heads, false);
    go(queries, kOfQueries, target_tiles_bound(d, kSm90TileRows), in.heads, true);
    go(backward_sm90_kernel<T, kDim, kSilu, kBias, false>, kOfKeys, history, in.kv_heads, false);
}

template <typename T, int kDim>
void launch_wide(const AttentionGradients& p, cudaStream_t stream) {
    p.inputs.in.bias.given() ? launch_of<T, kDim, true, true>(p, stream)
    : p.inputs.in.silu       ? launch_of<T, kDim, true, false>(p, stream)
                             : launch_of<T, kDim, false, false>(p, stream);
}

template <typename T>
void launch_as(const AttentionGradients& p, cudaStream_t stream) {
    p.inputs.in.head_dim <= 64 && p.inputs.in.value_dim <= 64 ? launch_wide<T, 64>(p, stream)
                                                              : launch_wide<T, 128>(p, stream);
}

}  // namespace

void launch_backward_sm90(const AttentionGradients& p, cudaStream_t stream) {
    p.inputs.in.dtype == DType::kBFloat16 ? launch_as<__nv_bfloat16>(p, stream)
                                          : launch_as<__half>(p, stream);
}

}  // namespace pylum::cuda
