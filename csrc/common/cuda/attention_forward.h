// Forward pass of both attention ops: a block per tile of rows and head, a warp per 16 rows. Reads
// Q once and K and V once per tile, by cp.async one block of keys ahead; bound by the matrix unit,
// 4 * rows * keys * head_dim, for long histories of many rows, and by reading K and V for few.
#pragma once

#include "common/cuda/attention_mask.h"
#include "common/cuda/attention_sums.h"
#include "common/cuda/attention_tile.h"
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
    unsigned broken_keys[2];
};

template <typename T, int kDim, bool kSilu>
class ForwardTile {
  public:
    using Shape = ForwardShape<T, kDim>;
    using Tiles = ForwardTiles<T, kDim>;
    static constexpr int kColumns = kDim / 8;     // fragments of the sums
    static constexpr int kKeys = kBlockKeys / 8;  // fragments of the weights

    __device__ __forceinline__ ForwardTile(const AttentionParams& params, const TileRows& rows,
                                           bool of_targets, Tiles& shared)
        : p(params), tile(rows), targets(of_targets), tiles(shared) {
        const Sequence& s = p.batch.sequences[tile.sequence];
        history_row = s.first_row;
        first_row = s.first_row + tile.first - s.cached + (targets ? s.history : 0);
        first_target = s.first_target + tile.first;
        find_spans(s);
        const T* q = static_cast<const T*>(p.in.q) + first_row * p.in.q_row + head() * p.in.q_head;
        load_tile<T, kDim, Shape::kRows, Shape::kThreads>(
            tiles.q, q, p.in.q_row, tile.rows, static_cast<int>(p.in.head_dim),
            wide_rows<T>(p.in.q, p.in.q_row, p.in.q_head, p.in.head_dim));
        copy_async_commit();
        copy_async_wait<0>();
        __syncthreads();
    }

    // Past the last key of the history that a row of the tile sees.
    __device__ __forceinline__ int keys() const { return limits.keys(); }

    // The history in [begin, end), block by block; every block's loads run behind the one before.
    __device__ __forceinline__ void run(int begin, int end) {
        clear();
        int first = limits.next(begin);
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
            const int following = limits.next(first + kBlockKeys);
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

    // To the output; history rows have no other part.
    __device__ __forceinline__ void store() {
#pragma unroll
        for (int h = 0; h < 2; ++h) {
            const float total = quad_sum(weight[h]);
            const int in_tile = warp_row() + g() + 8 * h;
            if (in_tile >= tile.rows) {
                continue;
            }
            const int64_t row = first_row + in_tile;
            const float factor = final_factor<kSilu>(p.in, row, head(), peak[h], total, t() == 0);
            T* out = static_cast<T*>(p.in.out) + (row * p.in.heads + head()) * p.in.value_dim;
            const int dim = static_cast<int>(p.in.value_dim);
#pragma unroll
            for (int n = 0; n < kColumns; ++n) {
                const int column = 8 * n + 2 * t();
                const float x = sums[n][2 * h] * factor, y = sums[n][2 * h + 1] * factor;
                if (column + 1 < dim && dim % 2 == 0) {
                    Pack<T, 2> pair;
                    pair.at[0] = from_float<T>(x);
                    pair.at[1] = from_float<T>(y);
                    store_pack<2>(out + column, pair);
                } else if (column < dim) {
                    out[column] = from_float<T>(x);
                    if (column + 1 < dim) {
                        out[column + 1] = from_float<T>(y);
                    }
                }
            }
        }
    }

    // To the rows' part number `slot`, after what it holds where `after` is set.
    __device__ __forceinline__ void save(int64_t slot, bool after) {
#pragma unroll
        for (int h = 0; h < 2; ++h) {
            const float total = quad_sum(weight[h]);
            const int in_tile = warp_row() + g() + 8 * h;
            const bool mine = in_tile < tile.rows;
            const int dim = static_cast<int>(p.in.value_dim);
            float* part = part_of(p, slot, first_target + (mine ? in_tile : 0), head());
            const Merge m = merge_factors<T, kSilu>(after && mine ? part[dim] : -INFINITY, peak[h]);
            __syncwarp();  // all have read the old peak
            if (!mine) {
                continue;
            }
#pragma unroll
            for (int n = 0; n < kColumns; ++n) {
#pragma unroll
                for (int e = 0; e < 2; ++e) {
                    const int column = 8 * n + 2 * t() + e;
                    if (column < dim) {
                        const float sum = sums[n][2 * h + e];
                        part[column] = after ? merged(m, part[column], sum) : sum;
                    }
                }
            }
            if (t() == 0) {
                part[dim + 1] = after ? merged(m, part[dim + 1], total) : total;
                part[dim] = after ? m.peak : peak[h];
            }
        }
    }

  private:
    __device__ __forceinline__ int head() const { return static_cast<int>(blockIdx.y); }
    __device__ __forceinline__ int kv_head() const {
        return head() / static_cast<int>(p.in.heads / p.in.kv_heads);
    }
    __device__ __forceinline__ static int warp_row() {
        return static_cast<int>(threadIdx.x) / 32 * 16;
    }
    __device__ __forceinline__ static int g() { return static_cast<int>(threadIdx.x) % 32 / 4; }
    __device__ __forceinline__ static int t() { return static_cast<int>(threadIdx.x) % 4; }

    __device__ __forceinline__ void find_spans(const Sequence& s) {
        for (int r = threadIdx.x; r < Shape::kRows; r += Shape::kThreads) {
            RowSpan span{0, 0, 0, 0, true};
            if (r < tile.rows) {
                span = targets ? target_row_span(p.batch, p.in.batch, s, tile.first + r)
                               : history_row_span(p.in.batch, s, tile.first + r);
            }
            tiles.spans[r] = span;
        }
        __syncthreads();
        limits = tile_limits(tiles.spans, tile.rows, static_cast<int>(s.context));
#pragma unroll
        for (int h = 0; h < 2; ++h) {
            begin[h] = tiles.spans[warp_row() + g() + 8 * h].begin;
            end[h] = tiles.spans[warp_row() + g() + 8 * h].end;
        }
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
                   (page * p.in.kv_heads + kv_head()) * kBlockKeys * dim;
        }
        const T* x = static_cast<const T*>(values ? p.in.v : p.in.k);
        return x + (history_row + first) * history_stride(values) +
               kv_head() * (values ? p.in.v_head : p.in.k_head);
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

    __device__ __forceinline__ void clear() {
#pragma unroll
        for (int n = 0; n < kColumns; ++n) {
#pragma unroll
            for (int i = 0; i < 4; ++i) {
                sums[n][i] = 0.0f;
            }
        }
#pragma unroll
        for (int h = 0; h < 2; ++h) {
            peak[h] = -INFINITY;
            weight[h] = 0.0f;
        }
    }

    __device__ __forceinline__ bool sees_key(int h, int key) const {
        return sees(begin[h], end[h], limits.context, key);
    }

    // Weights of the block of keys in the buffer, and older sums moved to the new peak.
    __device__ __forceinline__ void score(int first, int buffer) {
        const bool full = limits.full(first);
#pragma unroll
        for (int n = 0; n < kKeys; ++n) {
#pragma unroll
            for (int i = 0; i < 4; ++i) {
                weights[n][i] = 0.0f;
            }
        }
        add_rows_by_rows<T, kDim, kKeys>(weights, tiles.q, warp_row(), tiles.kv[buffer]);
        const float scale = kSilu ? p.in.scale : p.in.scale * kLog2e;
#pragma unroll
        for (int n = 0; n < kKeys; ++n) {
#pragma unroll
            for (int i = 0; i < 4; ++i) {
                const bool seen = full || sees_key(i / 2, first + 8 * n + 2 * t() + i % 2);
                const float x = weights[n][i] * scale;
                if constexpr (kSilu) {
                    weights[n][i] = seen ? silu<T>(x) : 0.0f;
                } else {
                    weights[n][i] = seen ? x : -INFINITY;
                }
            }
        }
        if constexpr (!kSilu) {
            soften();
        }
    }

    // Scores in powers of two to weights below the new peak. A row that sees no key keeps its bits.
    __device__ __forceinline__ void soften() {
#pragma unroll
        for (int h = 0; h < 2; ++h) {
            float most = -INFINITY;
#pragma unroll
            for (int n = 0; n < kKeys; ++n) {
                most = fmaxf(most, fmaxf(weights[n][2 * h], weights[n][2 * h + 1]));
            }
            const float next = fmaxf(peak[h], quad_max(most));
            const float base = next == -INFINITY ? 0.0f : next;
            const float factor = exp2_of<T>(peak[h] - base);
            peak[h] = next;
            weight[h] *= factor;
#pragma unroll
            for (int n = 0; n < kKeys; ++n) {
#pragma unroll
                for (int e = 2 * h; e < 2 * h + 2; ++e) {
                    weights[n][e] = exp2_of<T>(weights[n][e] - base);
                    weight[h] += weights[n][e];
                }
            }
#pragma unroll
            for (int n = 0; n < kColumns; ++n) {
                sums[n][2 * h] *= factor;
                sums[n][2 * h + 1] *= factor;
            }
        }
    }

    // Weighted values of the buffer. Zero times NaN is NaN: where a row may not see a value that is
    // not finite, the value is added apart, to the rows that see it.
    __device__ __forceinline__ void add(int first, int buffer) {
        T* values = tiles.kv[buffer];
        bool broken = false;
        if (!limits.full(first)) {
            broken =
                __syncthreads_or(tile_is_broken<T, kBlockKeys * kDim, Shape::kThreads>(values));
        }
        if (broken) {
            take_broken<T, kDim, Shape::kThreads>(values, tiles.broken_keys);
        }
        add_weighted<T, kDim, kKeys>(sums, weights, values);
        if (broken) {
            add_broken(history(true, first), first);
        }
    }

    __device__ __forceinline__ void add_broken(const T* values, int first) {
        const int64_t stride = history_stride(true);
#pragma unroll 1
        for (int key = 0; key < kBlockKeys; ++key) {
            if (!(tiles.broken_keys[key / 32] >> key % 32 & 1u)) {
                continue;
            }
            float mine[2] = {0.0f, 0.0f};
#pragma unroll
            for (int n = 0; n < kKeys; ++n) {
                // Values, never addresses, are chosen: else the fragments would live in memory.
                const float x0 = weights[n][0], x1 = weights[n][1];
                const float y0 = weights[n][2], y1 = weights[n][3];
                mine[0] = key / 8 == n ? (key % 2 ? x1 : x0) : mine[0];
                mine[1] = key / 8 == n ? (key % 2 ? y1 : y0) : mine[1];
            }
            const int lane = g() * 4 + key % 8 / 2;
            mine[0] = __shfl_sync(~0u, mine[0], lane);
            mine[1] = __shfl_sync(~0u, mine[1], lane);
#pragma unroll
            for (int n = 0; n < kColumns; ++n) {
#pragma unroll
                for (int e = 0; e < 2; ++e) {
                    const int column = 8 * n + 2 * t() + e;
                    const float x =
                        element(values, stride * key, column, static_cast<int>(p.in.value_dim));
                    const bool odd = !finite(x);
                    sums[n][e] += odd && sees_key(0, first + key) ? mine[0] * x : 0.0f;
                    sums[n][2 + e] += odd && sees_key(1, first + key) ? mine[1] * x : 0.0f;
                }
            }
        }
    }

    const AttentionParams& p;
    const TileRows tile;
    const bool targets;
    Tiles& tiles;
    int64_t history_row;   // of k and v, where they hold the history
    int64_t first_row;     // of q
    int64_t first_target;  // number of the first row in the batch's targets
    Limits limits;
    int begin[2], end[2];  // of the lane's two rows on the history
    float sums[kColumns][4];
    float peak[2], weight[2];  // weight: of the lane's columns
    float weights[kKeys][4];
};

// History rows at once; targets one chunk of keys after the other, each to a part in memory.
template <typename T, int kDim, bool kSilu>
__global__ void __launch_bounds__(ForwardShape<T, kDim>::kThreads)
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
    ForwardTile<T, kDim, kSilu> tile(p, rows, targets, tiles);
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

template <typename T, int kDim, bool kSilu>
void launch_forward_of(const AttentionParams& p, cudaStream_t stream) {
    using Shape = ForwardShape<T, kDim>;
    const auto go = [&](bool targets, int64_t tiles, int64_t chunks) {
        launch("attention: forward", forward_kernel<T, kDim, kSilu>,
               dim3(blocks_for(tiles, 1), static_cast<unsigned>(p.in.heads),
                    static_cast<unsigned>(chunks)),
               Shape::kThreads, sizeof(ForwardTiles<T, kDim>), stream, p, targets);
    };
    go(false, history_tiles_bound(p.batch, Shape::kRows), 1);
    go(true, target_tiles_bound(p.batch, Shape::kRows), p.chunks);
}

template <typename T>
void launch_forward_as(const AttentionParams& p, cudaStream_t stream) {
    const int64_t dim = p.in.head_dim > p.in.value_dim ? p.in.head_dim : p.in.value_dim;
    if (dim <= 64) {
        p.in.silu ? launch_forward_of<T, 64, true>(p, stream)
                  : launch_forward_of<T, 64, false>(p, stream);
    } else if (dim <= 128) {
        p.in.silu ? launch_forward_of<T, 128, true>(p, stream)
                  : launch_forward_of<T, 128, false>(p, stream);
    } else {
        p.in.silu ? launch_forward_of<T, 256, true>(p, stream)
                  : launch_forward_of<T, 256, false>(p, stream);
    }
}

}  // namespace pylum::cuda
