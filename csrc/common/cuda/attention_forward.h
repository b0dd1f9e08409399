// Forward pass of both attention ops: a block per tile of rows and head, a warp per 16 rows. Reads
// Q once and K and V once per tile, by cp.async one block of keys ahead; bound by the matrix unit,
// 4 * rows * keys * head_dim, for long histories of many rows, and by reading K and V for few.
#pragma once

#include "common/cuda/attention_forward_rows.h"
#include "common/cuda/attention_sm90.h"
#include "common/cuda/launch.h"
#include "common/cuda/shared.h"

namespace pylum::cuda {

// A tile of queries and the buffers of 64 keys or values fit 99 KB, the least of sm_80 to sm_120.
template <typename T, int kDim>
struct ForwardShape {
    static constexpr int kRowBytes = kDim * static_cast<int>(sizeof(T));
    static constexpr int kWarps = kRowBytes > 512 ? 2 : 4;
    static constexpr int kRows = 16 * kWarps;
    static constexpr int kThreads = 32 * kWarps;
    // 4: keys and values, of this block and the next; 2: of one block; 1: one for both in turn.
    static constexpr int kBuffers = kRowBytes <= 256 ? 4 : kRowBytes <= 512 ? 2 : 1;
};

template <typename T, int kDim>
struct ForwardTiles {
    using Shape = ForwardShape<T, kDim>;
    T q[Shape::kRows * kDim];
    T kv[Shape::kBuffers][kBlockKeys * kDim];
    RowSpan spans[Shape::kRows];
    ForwardShared shared;
    unsigned broken_keys[2];
};

template <typename T, int kDim, bool kSilu, bool kBias>
class ForwardTile {
  public:
    using Shape = ForwardShape<T, kDim>;
    using Tiles = ForwardTiles<T, kDim>;
    using Rows = ForwardRows<T, kDim, kSilu, kBias>;

    __device__ __forceinline__ ForwardTile(const AttentionParams& params, const TileRows& tile_rows,
                                           bool targets, Tiles& shared)
        : p(params),
          tile(Rows::kReads ? shared.shared.tile : tile_rows),
          kv_head(head() / static_cast<int>(params.in.heads / params.in.kv_heads)),
          rows(params, share(tile_rows, params, shared), targets, head(), warp_row()),
          tiles(shared) {
        for (int r = threadIdx.x; r < Shape::kRows; r += Shape::kThreads) {
            tiles.spans[r] = r < tile.rows ? rows.span_of(r) : RowSpan{0, 0, 0, 0, 0, true};
        }
        __syncthreads();
        if constexpr (Rows::kReads) {
            const Limits limits =
                tile_limits(tiles.spans, tile.rows, static_cast<int>(rows.s.context));
            if (threadIdx.x == 0) {
                tiles.shared.limits = limits;
            }
        }
        rows.take(tiles.spans);
        const T* q =
            static_cast<const T*>(p.in.q) + rows.first_row * p.in.q_row + head() * p.in.q_head;
        load_tile<T, kDim, Shape::kRows, Shape::kThreads>(
            tiles.q, q, p.in.q_row, tile.rows, static_cast<int>(p.in.head_dim),
            wide_rows<T>(p.in.q, p.in.q_row, p.in.q_head, p.in.head_dim));
        copy_async_commit();
        copy_async_wait<0>();
        __syncthreads();
    }

    // Past the last key of the history that a row of the tile sees.
    __device__ __forceinline__ int keys() const { return rows.limits.keys(); }

    // The history in [begin, end), block by block; every block's loads run behind the one before.
    __device__ __forceinline__ void run(int begin, int end) {
        rows.clear();
        int first = rows.limits.next(begin);
        if (first < end) {
            load(false, first, end, 0);
            copy_async_commit();
            if constexpr (Shape::kBuffers > 1) {
                load(true, first, end, 1);
                copy_async_commit();
            }
        }
        int buffer = 0;
        while (first < end) {
            const int following = rows.limits.next(first + kBlockKeys);
            if constexpr (Shape::kBuffers == 4) {
                copy_async_wait<1>();
                __syncthreads();
                if (following < end) {
                    load(false, following, end, 2 - buffer);
                }
                copy_async_commit();
                if (following < end) {
                    load(true, following, end, 3 - buffer);
                }
                copy_async_commit();
                score(first, buffer);
                copy_async_wait<2>();
                __syncthreads();
                add(first, buffer + 1);
                buffer = 2 - buffer;
            } else {
                copy_async_wait<Shape::kBuffers - 1>();
                __syncthreads();
                score(first, 0);
                if constexpr (Shape::kBuffers == 1) {
                    __syncthreads();
                    load(true, first, end, 0);
                    copy_async_commit();
                }
                copy_async_wait<0>();
                __syncthreads();
                if constexpr (Shape::kBuffers == 2) {
                    if (following < end) {
                        load(false, following, end, 0);
                    }
                    copy_async_commit();
                }
                add(first, Shape::kBuffers - 1);
                __syncthreads();
                if (following < end) {
                    load(Shape::kBuffers == 2, following, end, Shape::kBuffers - 1);
                }
                copy_async_commit();
            }
            first = following;
        }
        copy_async_wait<0>();
        __syncthreads();
    }

    __device__ __forceinline__ void store() { rows.store(); }
    __device__ __forceinline__ void save(int64_t slot, bool after) { rows.save(slot, after); }

  private:
    // What the rows are made of.
    __device__ __forceinline__ static auto& share(const TileRows& tile_rows,
                                                  const AttentionParams& p, Tiles& tiles) {
        if constexpr (Rows::kReads) {
            if (threadIdx.x == 0) {
                tiles.shared.tile = tile_rows;
                tiles.shared.sequence = p.batch.sequences[tile_rows.sequence];
            }
            __syncthreads();
            return tiles.shared;
        } else {
            return tile_rows;
        }
    }
    __device__ __forceinline__ static int head() { return static_cast<int>(blockIdx.y); }
    __device__ __forceinline__ static int warp_row() {
        return static_cast<int>(threadIdx.x) / 32 * 16;
    }
    // The history's keys or values from position `first`, a multiple of kBlockKeys; null where the
    // page lies outside the pool.
    __device__ __forceinline__ const T* history(bool values, int first) const {
        const int64_t dim = values ? p.in.value_dim : p.in.head_dim;
        if (p.in.k_pages) {
            const int64_t page = p.in.table[tile.sequence * p.in.table_row + first / kBlockKeys];
            if (page < 0 || page >= p.num_pages) {
                report_error(p.errors, kBadPages);
                return nullptr;
            }
            return static_cast<const T*>(values ? p.in.v_pages : p.in.k_pages) +
                   (page * p.in.kv_heads + kv_head) * kBlockKeys * dim;
        }
        const T* x = static_cast<const T*>(values ? p.in.v : p.in.k);
        return x + (rows.s.first_row + first) * history_stride(values) +
               kv_head * (values ? p.in.v_head : p.in.k_head);
    }
    __device__ __forceinline__ int64_t history_stride(bool values) const {
        return p.in.k_pages ? (values ? p.in.value_dim : p.in.head_dim)
                            : (values ? p.in.v_row : p.in.k_row);
    }

    __device__ __forceinline__ void load(bool values, int first, int end, int buffer) {
        const T* from = history(values, first);
        const int64_t stride = history_stride(values);
        const int64_t by_head = p.in.k_pages ? 0 : values ? p.in.v_head : p.in.k_head;
        const void* base = p.in.k_pages ? from : values ? p.in.v : p.in.k;
        const int64_t dim = values ? p.in.value_dim : p.in.head_dim;
        load_tile<T, kDim, kBlockKeys, Shape::kThreads>(
            tiles.kv[buffer], from, stride, min(kBlockKeys, end - first), static_cast<int>(dim),
            wide_rows<T>(base, stride, by_head, dim));
    }

    __device__ __forceinline__ void score(int first, int buffer) {
#pragma unroll
        for (int n = 0; n < Rows::kKeys; ++n) {
#pragma unroll
            for (int i = 0; i < 4; ++i) {
                rows.weights[n][i] = 0.0f;
            }
        }
        add_rows_by_rows<T, kDim, Rows::kKeys>(rows.weights, tiles.q, warp_row(), tiles.kv[buffer]);
        rows.weigh(first);
    }

    // Weighted values of the buffer.
    __device__ __forceinline__ void add(int first, int buffer) {
        T* values = tiles.kv[buffer];
        bool broken = false;
        if (!rows.limits.full(first)) {
            broken =
                __syncthreads_or(tile_is_broken<T, kBlockKeys * kDim, Shape::kThreads>(values));
        }
        if (broken) {
            take_broken<T, kDim, kBlockKeys, Shape::kThreads>(values, tiles.broken_keys);
        }
        add_weighted<T, kDim, Rows::kKeys>(rows.sums, rows.weights, values);
        if (broken) {
            __syncthreads();  // the values have been multiplied: the warps take their place
            rows.add_broken(history(true, first), history_stride(true), first, tiles.broken_keys,
                            reinterpret_cast<float(*)[kDim]>(values)[threadIdx.x / 32]);
        }
    }

    const AttentionParams& p;
    const typename Rows::template Kept<TileRows> tile;
    const int kv_head;
    Rows rows;
    Tiles& tiles;
};

// Blocks of a multiprocessor that the registers must leave room for; 0: the compiler's choice.
// Shared memory has room for three of 64 columns of 16 bits: none is gained by a word less.
template <typename T, int kDim>
constexpr int kForwardBlocks = sizeof(T) == 2 && kDim == 64 ? 3 : 0;

// History rows at once; targets one chunk of keys after the other, each to a part in memory.
template <typename T, int kDim, bool kSilu, bool kBias>
__global__ void __launch_bounds__(ForwardShape<T, kDim>::kThreads, kForwardBlocks<T, kDim>)
    forward_kernel(const __grid_constant__ AttentionParams p, bool targets) {
    using Shape = ForwardShape<T, kDim>;
    using Tiles = ForwardTiles<T, kDim>;
    PYLUM_SHARED(Tiles, tiles);
    if (*p.batch.broken) {
        if (!targets) {
            store_nan<T>(p.in.out, static_cast<int64_t>(blockIdx.x) * Shape::kRows, Shape::kRows,
                         p.batch.rows, p.in.heads, static_cast<int>(blockIdx.y), p.in.value_dim);
        }
        return;
    }
    const TileRows rows = find_tile(p.batch, blockIdx.x, targets, Shape::kRows);
    if (rows.rows == 0) {
        return;
    }
    ForwardTile<T, kDim, kSilu, kBias> tile(p, rows, targets, tiles);
    const int step = targets ? kChunkKeys : INT32_MAX;
    int first = targets ? static_cast<int>(blockIdx.z) * step : 0;
    const int stop =
        p.chunks > 1 ? min(tile.keys(), first + (targets ? step : tile.keys())) : tile.keys();
    if (first > 0 && first >= stop) {
        return;
    }
    do {
        tile.run(first, min(stop - first, step) + first);
        if (targets) {
            tile.save(blockIdx.z, p.chunks == 1 && first > 0);
        } else {
            tile.store();
        }
        first += min(step, INT32_MAX - first);
    } while (first < stop);
}

template <typename T, int kDim, bool kSilu, bool kBias>
void launch_forward_of(const AttentionParams& p, cudaStream_t stream) {
    using Shape = ForwardShape<T, kDim>;
    static_assert(sizeof(ForwardTiles<T, kDim>) <= 99 << 10,
                  "more shared memory than a block of sm_86 has");
    const auto go = [&](bool targets, int64_t tiles, int64_t chunks) {
        launch("attention: forward", forward_kernel<T, kDim, kSilu, kBias>,
               dim3(blocks_for(tiles, 1), static_cast<unsigned>(p.in.heads),
                    static_cast<unsigned>(chunks)),
               Shape::kThreads, sizeof(ForwardTiles<T, kDim>), stream, p, targets);
    };
    if (!runs_on_sm90(p)) {
        go(false, history_tiles_bound(p.batch, Shape::kRows), 1);
    }
    go(true, target_tiles_bound(p.batch, Shape::kRows), p.chunks);
}

// The table of instantiations: of float32 one kernel serves SiLU with a bias and without.
template <typename T, int kDim>
void launch_forward_wide(const AttentionParams& p, cudaStream_t stream) {
    if (!p.in.silu) {
        launch_forward_of<T, kDim, false, false>(p, stream);
    } else if (sizeof(T) == 4 || p.in.bias.given()) {
        launch_forward_of<T, kDim, true, true>(p, stream);
    } else {
        launch_forward_of<T, kDim, true, sizeof(T) == 4>(p, stream);
    }
}

template <typename T>
void launch_forward_as(const AttentionParams& p, cudaStream_t stream) {
    const int64_t dim = p.in.head_dim > p.in.value_dim ? p.in.head_dim : p.in.value_dim;
    if (dim <= 64) {
        launch_forward_wide<T, 64>(p, stream);
    } else if (dim <= 128) {
        launch_forward_wide<T, 128>(p, stream);
    } else {
        launch_forward_wide<T, 256>(p, stream);
    }
}

}  // namespace pylum::cuda
