// Forward pass of history rows on sm_90a, heads of up to 128: a block per tile of 128 rows and
// head. One warpgroup brings keys and values by the copy engine, up to four blocks of 64 ahead; two
// multiply for 64 rows each, queries in registers. Bound by the matrix unit, 4 * rows * keys *
// head_dim, and at 64 columns by the exponentials too. Rows see the same blocks in the same order
// as in attention_forward.h.
#include "common/cuda/attention_bias_sm90.h"
#include "common/cuda/attention_sm90.h"
#include "common/cuda/launch.h"
#include "common/cuda/shared.h"

namespace pylum::cuda {
namespace {

using namespace sm90;

template <typename T, int kDim, bool kSilu, bool kBias>
class Consumer {
  public:
    using Rows = ForwardRows<T, kDim, kSilu, kBias>;
    using Shared = Tiles<T, kDim, std::conditional_t<kBias, TileBias<kStages>, NoBias>>;

    __device__ __forceinline__ Consumer(const AttentionParams& params, const TileRows& group_rows,
                                        int group, Shared& shared)
        : p(params),
          tile(group_rows),
          rows(params, group_rows, false, static_cast<int>(blockIdx.y),
               static_cast<int>(threadIdx.x) / 32 % 4 * 16),
          tiles(shared) {
        rows.take(tiles.spans + group * kGroupRows);
        load_queries();
    }

    __device__ __forceinline__ void run() {
        const Limits& limits = tiles.limits[kGroups];  // of the blocks that the producers bring
        rows.clear();
        Place<> at;
        int open = -1;  // the stage whose values are being multiplied
        for (int first = limits.next(0); first < limits.keys();
             first = limits.next(first + kBlockKeys)) {
            barrier_wait(&tiles.keys_full[at.stage], at.parity);
            if (!takes_block(rows.limits, tile, first)) {
                // An older stage still held would be missing once the producers come round to it.
                group_wait<0>();
                if (open >= 0) {
                    release(open);
                    open = -1;
                }
                release(at.stage);
                at.advance();
                continue;
            }
            start_scores(tiles.keys[at.stage]);
            group_wait<0>();
            settle(rows.weights);
            settle(rows.sums);
            if (open >= 0) {
                release(open);
            }
            if constexpr (kBias) {
                add_bias(first, at.stage);
            }
            rows.weigh_scores(first);
            uint32_t left[kBlockKeys / 16][4];
#pragma unroll
            for (int k = 0; k < kBlockKeys / 16; ++k) {
                left[k][0] = pair_of<T>(rows.weights[2 * k][0], rows.weights[2 * k][1]);
                left[k][1] = pair_of<T>(rows.weights[2 * k][2], rows.weights[2 * k][3]);
                left[k][2] = pair_of<T>(rows.weights[2 * k + 1][0], rows.weights[2 * k + 1][1]);
                left[k][3] = pair_of<T>(rows.weights[2 * k + 1][2], rows.weights[2 * k + 1][3]);
            }
            barrier_wait(&tiles.values_full[at.stage], at.parity);
            start_sums(left, tiles.values[at.stage]);
            const unsigned* broken = tiles.broken_keys[at.stage];
            if (broken[0] | broken[1]) {
                group_wait<0>();
                settle(rows.sums);
                add_broken(first, broken);
            }
            open = at.stage;
            at.advance();
        }
        group_wait<0>();
        settle(rows.sums);
        if (open >= 0) {
            release(open);
        }
        rows.store();
    }

  private:
    __device__ __forceinline__ void release(int stage) {
        __syncwarp();
        if (threadIdx.x % 32 == 0) {
            barrier_arrive(&tiles.empty[stage]);
        }
    }

    // Scores: scale * product + bias.
    __device__ __forceinline__ void add_bias(int first, int stage) {
        const BiasStage& bias = tiles.bias.stages[stage];
        if (!bias.near) {
            rows.add_bias(first);
            return;
        }
        const int lane = static_cast<int>(threadIdx.x) % 32;
        const int group_row = (static_cast<int>(threadIdx.x) / kGroup - 1) * kGroupRows;
        const int row = group_row + warp_row() + lane / 4, column = lane % 4 * 2;
        const float* window = bias.window + kGroups * kGroupRows - 1 - row + column;
        const bool timed = p.in.bias.times != nullptr;
        int times[2];
#pragma unroll
        for (int h = 0; h < 2; ++h) {
            times[h] = tiles.bias.near_clock(row + 8 * h);
        }
#pragma unroll
        for (int n = 0; n < Rows::kKeys; ++n) {
            const auto keys = load_pack<2>(bias.times + 8 * n + column);
#pragma unroll
            for (int i = 0; i < 4; ++i) {
                float x = window[8 * n - i / 2 * 8 + i % 2];
                if (timed) {
                    x += tiles.bias.cells.at(times[i / 2], keys.at[i % 2]);
                }
                rows.weights[n][i] = rows.weights[n][i] * p.in.scale + x;
            }
        }
    }

    __device__ __forceinline__ void load_queries() {
        const int lane = static_cast<int>(threadIdx.x) % 32, dim = static_cast<int>(p.in.head_dim);
        const T* q = static_cast<const T*>(p.in.q) + rows.first_row * p.in.q_row +
                     static_cast<int>(blockIdx.y) * p.in.q_head;
        const bool pairs = reinterpret_cast<uintptr_t>(p.in.q) % 4 == 0 && p.in.q_row % 2 == 0 &&
                           p.in.q_head % 2 == 0 && dim % 2 == 0;
#pragma unroll
        for (int k = 0; k < kDim / 16; ++k) {
#pragma unroll
            for (int i = 0; i < 4; ++i) {
                const int row = warp_row() + lane / 4 + i % 2 * 8;
                const int column = 16 * k + i / 2 * 8 + lane % 4 * 2;
                Pack<T, 2> x{{from_float<T>(0.0f), from_float<T>(0.0f)}};
                if (row < tile.rows && column < dim) {
                    const T* from = q + row * p.in.q_row + column;
                    if (pairs) {
                        x = load_pack<2>(from);
                    } else {
                        x.at[0] = from[0];
                        if (column + 1 < dim) {
                            x.at[1] = from[1];
                        }
                    }
                }
                memcpy(&queries[k][i], &x, sizeof x);
            }
        }
    }
    __device__ __forceinline__ static int warp_row() {
        return static_cast<int>(threadIdx.x) / 32 % 4 * 16;
    }

    __device__ __forceinline__ void start_scores(const T* keys) {
        group_fence();
        multiply_group<T, false, true>(rows.weights, queries[0], matrix_of(keys, 1024, 0));
#pragma unroll
        for (int k = 1; k < kDim / 16; ++k) {
            const T* depth = keys + k / 4 * kBlockKeys * kPart + k % 4 * 16;
            multiply_group<T, false>(rows.weights, queries[k], matrix_of(depth, 1024, 0));
        }
        group_commit();
    }

    __device__ __forceinline__ void start_sums(const uint32_t (&left)[kBlockKeys / 16][4],
                                               const T* values) {
        group_fence();
#pragma unroll
        for (int k = 0; k < kBlockKeys / 16; ++k) {
            multiply_group<T, true>(rows.sums, left[k],
                                    matrix_of(values + k * 16 * kPart, 1024, 8192));
        }
        group_commit();
    }

    __device__ __forceinline__ void add_broken(int first, const unsigned* broken_keys) {
        const int kv_head = tiles.kv_head;
        const T* from = static_cast<const T*>(p.in.v) + (rows.s.first_row + first) * p.in.v_row +
                        kv_head * p.in.v_head;
        int64_t stride = p.in.v_row;
        if (p.in.k_pages) {
            const int64_t page = p.in.table[tile.sequence * p.in.table_row + first / kBlockKeys];
            stride = p.in.value_dim;
            from = page < 0 || page >= p.num_pages
                       ? nullptr
                       : static_cast<const T*>(p.in.v_pages) +
                             (page * p.in.kv_heads + kv_head) * kBlockKeys * stride;
        }
        rows.add_broken(from, stride, first, broken_keys,
                        tiles.broken_values[static_cast<int>(threadIdx.x) / 32 - 4]);
    }

    const AttentionParams& p;
    const TileRows tile;
    Rows rows;
    Shared& tiles;
    uint32_t queries[kDim / 16][4];
};

template <typename T, int kDim, bool kSilu, bool kBias>
__global__ void __launch_bounds__(kThreads, 1)
    forward_sm90_kernel(const __grid_constant__ AttentionParams p,
                        const __grid_constant__ Source keys,
                        const __grid_constant__ Source values) {
#if !defined(__CUDA_ARCH__) || defined(__CUDA_ARCH_FEAT_SM90_ALL)
    using Consumer = Consumer<T, kDim, kSilu, kBias>;
    using Shared = typename Consumer::Shared;
    PYLUM_SHARED(Shared, tiles);
    constexpr int kRows = kGroups * kGroupRows;
    static_assert(kRows == kSm90TileRows, "the batch is cut into tiles of so many rows");
    if (*p.batch.broken) {
        store_nan<T>(p.in.out, static_cast<int64_t>(blockIdx.x) * kRows, kRows, p.batch.rows,
                     p.in.heads, static_cast<int>(blockIdx.y), p.in.value_dim);
        return;
    }
    const TileRows tile = find_tile(p.batch, blockIdx.x, false, kRows);
    if (tile.rows == 0) {
        return;
    }
    const Sequence& s = p.batch.sequences[tile.sequence];
    const int thread = static_cast<int>(threadIdx.x);
    if (thread < kRows) {
        tiles.spans[thread] = thread < tile.rows
                                  ? history_row_span(p.in.batch, s, tile.first + thread)
                                  : RowSpan{0, 0, 0, 0, 0, true};
    }
    if (thread == 0) {
        for (int i = 0; i < kStages; ++i) {
            barrier_init(&tiles.keys_full[i], kBias ? 2 : 1);  // the bias's part arrives too
            barrier_init(&tiles.values_full[i], 1);
            barrier_init(&tiles.empty[i], 4 * kGroups);
        }
        barrier_init(&tiles.landed, 1);
        fence_barriers();
        tiles.kv_head = static_cast<int>(blockIdx.y) / static_cast<int>(p.in.heads / p.in.kv_heads);
    }
    if constexpr (kBias) {
        const int64_t* times = query_clocks(p, s.first_row + tile.first - s.cached);
        const bool near = !__syncthreads_or(tiles.bias.fill(p, times, tile.rows));
        if (thread == 0) {
            tiles.bias.near = near;
        }
    } else {
        __syncthreads();
    }
    if (thread / 32 <= kGroups) {
        const int warp = thread / 32;
        const int rows = warp < kGroups ? rows_of_group(tile, warp).rows : tile.rows;
        const Limits limits = tile_limits(tiles.spans + warp % kGroups * kGroupRows, rows,
                                          static_cast<int>(s.context));
        if (thread % 32 == 0) {
            tiles.limits[warp] = limits;
        }
    }
    __syncthreads();
    if (thread < kGroup) {
        fewer_registers<40>();
        Producer<T, kDim, decltype(tiles.bias)>(p, tile, keys, values, tiles).run();
    } else {
        more_registers<232>();
        const int group = thread / kGroup - 1;
        Consumer(p, rows_of_group(tile, group), group, tiles).run();
    }
#endif
}

// What the copy engine reads: the history's rows, or the pages' rows one after the other.
Source source_of(const AttentionParams& p, bool values) {
    const AttentionInputs& in = p.in;
    const int64_t dim = values ? in.value_dim : in.head_dim;
    Source source{};
    if (in.k_pages) {
        const int64_t rows = p.num_pages * in.kv_heads * kBlockKeys;
        source.wide = rows <= INT32_MAX && encode_map(&source.map, values ? in.v_pages : in.k_pages,
                                                      {dim, 1, rows}, {1, dim, dim}, kBlockKeys);
        return source;
    }
    return source_of_rows(values ? in.v : in.k, dim, in.kv_heads, p.batch.rows,
                          values ? in.v_row : in.k_row, values ? in.v_head : in.k_head);
}

template <typename T, int kDim, bool kSilu, bool kBias>
void launch_of(const AttentionParams& p, cudaStream_t stream) {
    const dim3 grid(blocks_for(history_tiles_bound(p.batch, kSm90TileRows), 1),
                    static_cast<unsigned>(p.in.heads));
    launch("attention: forward_sm90", forward_sm90_kernel<T, kDim, kSilu, kBias>, grid, kThreads,
           sizeof(typename Consumer<T, kDim, kSilu, kBias>::Shared), stream, p, source_of(p, false),
           source_of(p, true));
}

template <typename T, int kDim>
void launch_wide(const AttentionParams& p, cudaStream_t stream) {
    p.in.bias.given() ? launch_of<T, kDim, true, true>(p, stream)
    : p.in.silu       ? launch_of<T, kDim, true, false>(p, stream)
                      : launch_of<T, kDim, false, false>(p, stream);
}

template <typename T>
void launch_as(const AttentionParams& p, cudaStream_t stream) {
    p.in.head_dim <= 64 && p.in.value_dim <= 64 ? launch_wide<T, 64>(p, stream)
                                                : launch_wide<T, 128>(p, stream);
}

}  // namespace

void launch_forward_sm90(const AttentionParams& p, cudaStream_t stream) {
    p.in.dtype == DType::kBFloat16 ? launch_as<__nv_bfloat16>(p, stream)
                                   : launch_as<__half>(p, stream);
}

}  // namespace pylum::cuda
