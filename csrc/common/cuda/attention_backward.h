// Gradients of attention on tiles of history: a block per tile of rows, a warp per 16. For dq the
// rows are queries and run over the keys they see; for dk and dv they are keys and run over the
// queries that see them, head after head. No sum is shared between blocks, so every order is fixed;
// the price is 7 products for each pair instead of 5. Bound by the matrix unit.
#pragma once

#include <type_traits>

#include "common/cuda/attention_backward_bias.h"
#include "common/cuda/attention_mask.h"
#include "common/cuda/attention_sums.h"
#include "common/cuda/attention_tile.h"
#include "common/cuda/launch.h"
#include "common/cuda/shared.h"

namespace pylum::cuda {

enum class Gradient { kQueries, kKeys, kValues, kKeysAndValues };

// Two tiles of rows and two of what they meet fit 99 KB.
template <typename T, int kDim>
struct BackwardShape {
    static constexpr int kRowBytes = kDim * static_cast<int>(sizeof(T));
    static constexpr int kWarps = kRowBytes <= 256 ? 4 : 2;
    static constexpr int kRows = 16 * kWarps;
    static constexpr int kThreads = 32 * kWarps;
    // Of float32, whose factors take two registers each, half as many.
    static constexpr int kMeets = kRowBytes > 512                     ? 16
                                  : kRowBytes > 256 || sizeof(T) == 4 ? 32
                                                                      : 64;
};

template <typename T, int kDim, bool kBiasGradient>
struct BackwardTiles {
    using Shape = BackwardShape<T, kDim>;
    using Scores = PairGradients<Shape::kRows, Shape::kMeets>;
    // Gradients of the scores stand where the values stood, if there is room.
    static constexpr bool kApart = kBiasGradient &&
                                   sizeof(Scores) > sizeof(T) * Shape::kMeets* kDim;

    T rows[2][Shape::kRows * kDim];    // q and dout, or k and v
    T meets[2][Shape::kMeets * kDim];  // the other two
    // Of the queries, on whichever side they stand.
    RowSpan spans[64];
    float level[64], delta[64];
    int64_t times[64];
    float apart[kApart ? sizeof(Scores) / sizeof(float) : 1];

    __device__ __forceinline__ Scores& dscores() {
        return *reinterpret_cast<Scores*>(kApart ? apart : reinterpret_cast<float*>(meets[1]));
    }
};

template <typename T, int kDim, bool kSilu, bool kBias, Gradient kGradient>
class BackwardTile {
  public:
    using Shape = BackwardShape<T, kDim>;
    static constexpr bool kOfQueries = kGradient == Gradient::kQueries;
    using Tiles = BackwardTiles<T, kDim, kBias && kOfQueries>;
    static constexpr bool kOfKeys =
        kGradient == Gradient::kKeys || kGradient == Gradient::kKeysAndValues;
    static constexpr bool kOfValues =
        kGradient == Gradient::kValues || kGradient == Gradient::kKeysAndValues;
    static constexpr int kColumns = kDim / 8;
    static constexpr int kPairs = Shape::kMeets / 8;

    __device__ __forceinline__ BackwardTile(const AttentionGradients& params, const TileRows& rows,
                                            Tiles& shared)
        : p(params),
          in(params.inputs.in),
          s(params.inputs.batch.sequences[rows.sequence]),
          tile(rows),
          tiles(shared) {}

    // dq of the tile's queries and the head.
    __device__ __forceinline__ void run_queries(bool targets, int head) {
        const int64_t first_row = s.first_row + tile.first + (targets ? s.history : 0);
        const int kv_head = head / static_cast<int>(in.heads / in.kv_heads);
        describe_queries(targets, tile.first, tile.rows, Shape::kRows, head);
        load<Shape::kRows>(tiles.rows[0], in.q, first_row, in.q_row, in.q_head, head, in.head_dim,
                           tile.rows);
        load<Shape::kRows>(tiles.rows[1], p.dout, first_row, p.dout_row, p.dout_head, head,
                           in.value_dim, tile.rows);
        const Limits limits = tile_limits(tiles.spans, tile.rows, static_cast<int>(s.context));
        start(targets ? own_part(head) : nullptr);
        for (int first = limits.next(0); first < limits.keys();
             first = limits.next(first + Shape::kMeets)) {
            const int count = min(Shape::kMeets, limits.keys() - first);
            load_keys<Shape::kMeets>(tiles.meets[0], tiles.meets[1], first, kv_head, count);
            finish_loads();
            weigh(first);
            add_weighted<T, kDim, kPairs>(sums, scores, tiles.meets[0]);
            if constexpr (kBias) {
                if (in.bias.given()) {
                    __syncthreads();  // the values have been multiplied
                    tiles.dscores().take(scores, warp_row());
                    __syncthreads();
                    tiles.dscores().add(p, s, tiles.spans, tiles.times, tile.rows, first, count);
                }
            }
            __syncthreads();
        }
        copy_async_commit();
        copy_async_wait<0>();
        store(p.dq, sums, in.scale, first_row, in.heads, head, in.head_dim);
    }

    // dk and dv of the tile's keys.
    __device__ __forceinline__ void run_keys(int kv_head) {
        const int group = static_cast<int>(in.heads / in.kv_heads);
        const int64_t first_row = s.first_row + tile.first;
        load_keys<Shape::kRows>(tiles.rows[0], tiles.rows[1], static_cast<int>(tile.first), kv_head,
                                tile.rows);
        start(nullptr);
        // Rows before a key see it as context only.
        const int64_t begin =
            tile.first >= s.context ? tile.first / Shape::kMeets * Shape::kMeets : 0;
        for (int head = kv_head * group; head < (kv_head + 1) * group; ++head) {
            for (int64_t first = begin; first < s.history; first += Shape::kMeets) {
                meet(false, first, s.history - first, head);
            }
            for (int64_t first = 0; first < s.targets; first += Shape::kMeets) {
                meet(true, first, s.targets - first, head);
            }
        }
        copy_async_commit();
        copy_async_wait<0>();
        if constexpr (kOfKeys) {
            store(p.dk, sums, in.scale, first_row, in.kv_heads, kv_head, in.head_dim);
        }
        if constexpr (kOfValues) {
            store(p.dv, more_sums, 1.0f, first_row, in.kv_heads, kv_head, in.value_dim);
        }
    }

  private:
    __device__ __forceinline__ static int warp_row() {
        return static_cast<int>(threadIdx.x) / 32 * 16;
    }
    __device__ __forceinline__ static int g() { return static_cast<int>(threadIdx.x) % 32 / 4; }
    __device__ __forceinline__ static int t() { return static_cast<int>(threadIdx.x) % 4; }

    __device__ __forceinline__ void start(const float* part) {
#pragma unroll
        for (int n = 0; n < kColumns; ++n) {
#pragma unroll
            for (int i = 0; i < 4; ++i) {
                const int row = warp_row() + g() + i / 2 * 8, column = 8 * n + 2 * t() + i % 2;
                sums[n][i] = part && row < tile.rows && column < in.head_dim
                                 ? part[row * in.heads * in.head_dim + column]
                                 : 0.0f;
                if constexpr (kOfValues) {
                    more_sums[n][i] = 0.0f;
                }
            }
        }
    }

    // Of the tile's first target.
    __device__ __forceinline__ const float* own_part(int head) const {
        return p.inputs.parts + ((s.first_target + tile.first) * in.heads + head) * in.head_dim;
    }

    // Spans, lse and delta of `count` queries of one class.
    __device__ __forceinline__ void describe_queries(bool targets, int64_t first, int64_t count,
                                                     int room, int head) {
        for (int r = threadIdx.x; r < room; r += Shape::kThreads) {
            RowSpan span{0, 0, 0, 0, 0, true};
            float level = 0.0f, delta = 0.0f;
            int64_t time = 0;
            if (r < count) {
                span = targets ? target_row_span(p.inputs.batch, in.batch, s, first + r)
                               : history_row_span(in.batch, s, first + r);
                const int64_t row = s.first_row + first + r + (targets ? s.history : 0);
                level = row_level<kSilu>(in, row, head);
                delta = kSilu ? 0.0f : p.delta[row * in.heads + head];
                time = kBias ? row_time(p.inputs, row) : 0;
            }
            tiles.spans[r] = span;
            tiles.level[r] = level;
            tiles.delta[r] = delta;
            if constexpr (kBias) {
                tiles.times[r] = time;
            }
        }
        __syncthreads();
    }

    template <int kCount>
    __device__ __forceinline__ void load(T* to, const void* from, int64_t first_row, int64_t row,
                                         int64_t by_head, int head, int64_t dim, int64_t count) {
        load_tile<T, kDim, kCount, Shape::kThreads>(
            to, static_cast<const T*>(from) + first_row * row + head * by_head, row,
            static_cast<int>(count < kCount ? count : kCount), static_cast<int>(dim),
            wide_rows<T>(from, row, by_head, dim));
    }

    template <int kCount>
    __device__ __forceinline__ void load_keys(T* keys, T* values, int first, int kv_head,
                                              int count) {
        load<kCount>(keys, in.k, s.first_row + first, in.k_row, in.k_head, kv_head, in.head_dim,
                     count);
        load<kCount>(values, in.v, s.first_row + first, in.v_row, in.v_head, kv_head, in.value_dim,
                     count);
    }

    __device__ __forceinline__ static void finish_loads() {
        copy_async_commit();
        copy_async_wait<0>();
        __syncthreads();
    }

    // The tile's keys and up to kMeets queries of one class.
    __device__ __forceinline__ void meet(bool targets, int64_t first, int64_t left, int head) {
        const int count = static_cast<int>(left < Shape::kMeets ? left : Shape::kMeets);
        describe_queries(targets, first, count, Shape::kMeets, head);
        const Limits limits = tile_limits(tiles.spans, count, static_cast<int>(s.context));
        const int key = static_cast<int>(tile.first);
        if (limits.meet(key, tile.rows)) {
            const int64_t row = s.first_row + first + (targets ? s.history : 0);
            load<Shape::kMeets>(tiles.meets[0], in.q, row, in.q_row, in.q_head, head, in.head_dim,
                                count);
            load<Shape::kMeets>(tiles.meets[1], p.dout, row, p.dout_row, p.dout_head, head,
                                in.value_dim, count);
            finish_loads();
            weigh(key);
            if constexpr (kOfKeys) {
                add_weighted<T, kDim, kPairs>(sums, scores, tiles.meets[0]);
            }
            if constexpr (kOfValues) {
                add_weighted<T, kDim, kPairs>(more_sums, weights, tiles.meets[1]);
            }
        }
        __syncthreads();
    }

    // Weights and score gradients of all pairs; `first` is the position of the first key.
    __device__ __forceinline__ void weigh(int first) {
#pragma unroll
        for (int n = 0; n < kPairs; ++n) {
#pragma unroll
            for (int i = 0; i < 4; ++i) {
                scores[n][i] = 0.0f;
                weights[n][i] = 0.0f;
            }
        }
        add_rows_by_rows<T, kDim, kPairs>(scores, tiles.rows[0], warp_row(), tiles.meets[0]);
        if constexpr (kGradient != Gradient::kValues) {
            add_rows_by_rows<T, kDim, kPairs>(weights, tiles.rows[1], warp_row(), tiles.meets[1]);
        }
        const int64_t* times = kBias ? key_times(p.inputs, s, false) : nullptr;
        const int last = static_cast<int>(s.history) - 1;
#pragma unroll
        for (int n = 0; n < kPairs; ++n) {
#pragma unroll
            for (int i = 0; i < 4; ++i) {
                const int row = warp_row() + g() + i / 2 * 8, column = 8 * n + 2 * t() + i % 2;
                const int query = kOfQueries ? row : column;
                const int key = first + (kOfQueries ? column : row);
                const RowSpan& span = tiles.spans[query];
                const bool seen = sees(span.begin, span.end, static_cast<int>(s.context), key);
                float score = scores[n][i] * in.scale;
                if constexpr (kBias) {
                    // Keys past the history are of no row: their clock is any.
                    const int64_t time = times ? times[min(key, last)] : 0;
                    score += pair_bias(p.inputs, key - span.position,
                                       time_gap(tiles.times[query], time));
                }
                const PairGradient pair = pair_gradient<T, kSilu>(
                    score, weights[n][i], tiles.level[query], tiles.delta[query]);
                scores[n][i] = seen ? pair.score : 0.0f;
                weights[n][i] = seen ? pair.weight : 0.0f;
            }
        }
    }

    __device__ __forceinline__ void store(void* to, const float (&x)[kColumns][4], float factor,
                                          int64_t first_row, int64_t heads, int head, int64_t dim) {
#pragma unroll
        for (int h = 0; h < 2; ++h) {
            const int row = warp_row() + g() + 8 * h;
            if (row >= tile.rows) {
                continue;
            }
            T* out = static_cast<T*>(to) + ((first_row + row) * heads + head) * dim;
#pragma unroll
            for (int n = 0; n < kColumns; ++n) {
#pragma unroll
                for (int e = 0; e < 2; ++e) {
                    const int column = 8 * n + 2 * t() + e;
                    if (column < dim) {
                        out[column] = from_float<T>(x[n][2 * h + e] * factor);
                    }
                }
            }
        }
    }

    const AttentionGradients& p;
    const AttentionInputs& in;
    const Sequence& s;
    const TileRows tile;
    Tiles& tiles;
    float sums[kColumns][4];                       // dq or dk
    float more_sums[kOfValues ? kColumns : 1][4];  // dv
    float scores[kPairs][4], weights[kPairs][4];
};

#ifdef __CUDA_ARCH_FEAT_SM90_ALL
constexpr bool kForSm90 = true;
#else
constexpr bool kForSm90 = false;
#endif

template <typename T, int kDim, bool kSilu, bool kBias, Gradient kGradient>
__global__ void __launch_bounds__(BackwardShape<T, kDim>::kThreads, kBias ? 1 : 0)
    backward_kernel(const __grid_constant__ AttentionGradients p, bool targets) {
    // What runs_on_sm90() says has kernels of its own: code that never runs would only be compiled.
    if constexpr (!kForSm90 || sizeof(T) == 4 || kDim > 128 || kBias) {
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
            tile.run_queries(targets, head);
        } else {
            tile.run_keys(head);
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
