// One tile of attention's backward pass: the gradients of its rows from the tiles they meet.
#pragma once

#include "common/cuda/attention_backward_bias.h"
#include "common/cuda/attention_mask.h"
#include "common/cuda/attention_sums.h"
#include "common/cuda/attention_tile.h"

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
    // What the tile's code needs now and then: the sums take most of the registers.
    TileRows tile;
    Sequence sequence;
    // Of the queries, on whichever side they stand.
    RowSpan spans[64];
    float level[64], delta[64];
    int64_t times[64];
    unsigned broken[2][2];  // rows of `meets` that take_broken() has taken
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
    // Rows met at a time: beside two sums of 128 columns the registers hold the pairs of 32.
    static constexpr int kTurn =
        kGradient == Gradient::kKeysAndValues && Shape::kRowBytes == 256 && sizeof(T) == 2
            ? 32
            : Shape::kMeets;
    static constexpr int kPairs = kTurn / 8;

    __device__ __forceinline__ BackwardTile(const AttentionGradients& params, const TileRows& rows,
                                            Tiles& shared)
        : p(params), in(params.inputs.in), s(shared.sequence), tile(shared.tile), tiles(shared) {
        if (threadIdx.x == 0) {
            tiles.tile = rows;
            tiles.sequence = p.inputs.batch.sequences[rows.sequence];
        }
        __syncthreads();
    }

    // dq of the tile's queries and the head.
    __device__ __forceinline__ void run_queries(bool targets) {
        const int kv_head = head() / static_cast<int>(in.heads / in.kv_heads);
        describe_queries(targets, tile.first, tile.rows, Shape::kRows, head());
        load<Shape::kRows>(tiles.rows[0], queries(), row_of(targets, tile.first), head(),
                           tile.rows);
        load<Shape::kRows>(tiles.rows[1], douts(), row_of(targets, tile.first), head(), tile.rows);
        const Limits limits = tile_limits(tiles.spans, tile.rows, static_cast<int>(s.context));
        start(targets ? own_part() : nullptr);
        for (int first = limits.next(0); first < limits.keys();
             first = limits.next(first + Shape::kMeets)) {
            const int count = min(Shape::kMeets, limits.keys() - first);
            load<Shape::kMeets>(tiles.meets[0], keys(), row_of(false, first), kv_head, count);
            load<Shape::kMeets>(tiles.meets[1], values(), row_of(false, first), kv_head, count);
            finish_loads();
            const bool broken = meets_are_broken(limits.full(first, Shape::kMeets));
            weigh(first, 0);
            add<0>(sums, scores, 0, broken, keys(), false, first, kv_head, first);
            if constexpr (kBias) {
                if (in.bias.given()) {
                    __syncthreads();  // the values have been multiplied
                    tiles.dscores().take(scores, warp_row());
                    __syncthreads();
                    tiles.dscores().add(p, s, tiles.spans, tiles.times, tile.rows, first, count,
                                        static_cast<int>(threadIdx.x), Shape::kThreads);
                }
            }
            __syncthreads();
        }
        copy_async_commit();
        copy_async_wait<0>();
        store(p.dq, sums, in.scale, row_of(targets, tile.first), in.heads, in.head_dim);
    }

    // dk and dv of the tile's keys.
    __device__ __forceinline__ void run_keys() {
        const int group = static_cast<int>(in.heads / in.kv_heads);
        load<Shape::kRows>(tiles.rows[0], keys(), row_of(false, tile.first), head(), tile.rows);
        load<Shape::kRows>(tiles.rows[1], values(), row_of(false, tile.first), head(), tile.rows);
        start(nullptr);
        const int begin = head() * group;
        for (int query_head = begin; query_head < begin + group; ++query_head) {
            // One copy of the code, whose registers would else be needed twice.
#pragma unroll 1
            for (int of_targets = 0; of_targets < 2; ++of_targets) {
                const int end = static_cast<int>(of_targets ? s.targets : s.history);
                int first = 0;
                if (!of_targets && tile.first >= s.context) {
                    // Rows before a key see it as context only.
                    first = static_cast<int>(tile.first) / Shape::kMeets * Shape::kMeets;
                }
#pragma unroll 1
                for (; first < end; first += Shape::kMeets) {
                    meet(of_targets, first, min(Shape::kMeets, end - first), query_head);
                }
            }
        }
        copy_async_commit();
        copy_async_wait<0>();
        if constexpr (kOfKeys) {
            store(p.dk, sums, in.scale, row_of(false, tile.first), in.kv_heads, in.head_dim);
        }
        if constexpr (kOfValues) {
            store(p.dv, more_sums, 1.0f, row_of(false, tile.first), in.kv_heads, in.value_dim);
        }
    }

  private:
    // Of the queries for dq, else of the keys.
    __device__ __forceinline__ static int head() { return static_cast<int>(blockIdx.y); }
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
    __device__ __forceinline__ const float* own_part() const {
        return p.inputs.parts + ((s.first_target + tile.first) * in.heads + head()) * in.head_dim;
    }

    // Spans, lse and delta of `count` queries of one class.
    __device__ __forceinline__ void describe_queries(bool targets, int64_t first, int count,
                                                     int room, int head) {
        for (int r = opaque(static_cast<int>(threadIdx.x)); r < room; r += Shape::kThreads) {
            RowSpan span{0, 0, 0, 0, 0, true};
            float level = 0.0f, delta = 0.0f;
            int64_t time = 0;
            if (r < count) {
                span = targets ? target_row_span(p.inputs.batch, in.batch, s, first + r)
                               : history_row_span(in.batch, s, first + r);
                const int64_t row = row_of(targets, first + r);
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

    // A tensor [rows, heads, dim] and its strides.
    struct Source {
        const void* base;
        int64_t by_row, by_head, dim;

        __device__ __forceinline__ const T* at(int64_t row, int head) const {
            return static_cast<const T*>(base) + row * by_row + head * by_head;
        }
    };
    __device__ __forceinline__ Source queries() const {
        return {in.q, in.q_row, in.q_head, in.head_dim};
    }
    __device__ __forceinline__ Source douts() const {
        return {p.dout, p.dout_row, p.dout_head, in.value_dim};
    }
    __device__ __forceinline__ Source keys() const {
        return {in.k, in.k_row, in.k_head, in.head_dim};
    }
    __device__ __forceinline__ Source values() const {
        return {in.v, in.v_row, in.v_head, in.value_dim};
    }

    template <int kCount>
    __device__ __forceinline__ void load(T* to, const Source& from, int64_t first_row, int head,
                                         int64_t count) {
        load_tile<T, kDim, kCount, Shape::kThreads>(
            to, from.at(first_row, head), from.by_row,
            static_cast<int>(count < kCount ? count : kCount), static_cast<int>(from.dim),
            wide_rows<T>(from.base, from.by_row, from.by_head, from.dim));
    }

    __device__ __forceinline__ static void finish_loads() {
        copy_async_commit();
        copy_async_wait<0>();
        __syncthreads();
    }

    // The tile's keys and `count` queries of one class.
    __device__ __forceinline__ void meet(bool targets, int first, int count, int head) {
        describe_queries(targets, first, count, Shape::kMeets, head);
        const Limits limits = tile_limits(tiles.spans, count, static_cast<int>(s.context));
        const int key = static_cast<int>(tile.first);
        if (limits.meet(key, tile.rows)) {
            const int64_t row = row_of(targets, first);
            load<Shape::kMeets>(tiles.meets[0], queries(), row, head, count);
            load<Shape::kMeets>(tiles.meets[1], douts(), row, head, count);
            finish_loads();
            const bool broken = meets_are_broken(limits.full(key, tile.rows));
#pragma unroll 1
            for (int turn = 0; turn < Shape::kMeets; turn += kTurn) {
                weigh(key, turn);
                if constexpr (kOfKeys) {
                    add<0>(sums, scores, turn, broken, queries(), targets, first, head, key);
                }
                if constexpr (kOfValues) {
                    add<1>(more_sums, weights, turn, broken, douts(), targets, first, head, key);
                }
            }
        }
        __syncthreads();
    }

    __device__ __forceinline__ bool sees_key(int query, int key) const {
        const RowSpan& span = tiles.spans[query];
        return sees(span.begin, span.end, static_cast<int>(s.context), key);
    }

    // Whether what will be multiplied once more is not finite; where all pairs are seen, no matter.
    __device__ __forceinline__ bool meets_are_broken(bool full) const {
        constexpr int kElements = Shape::kMeets * kDim;
        bool broken = false;
        if (!full) {
            if constexpr (kOfQueries || kOfKeys) {
                broken = tile_is_broken<T, kElements, Shape::kThreads>(tiles.meets[0]);
            }
            if constexpr (kOfValues) {
                broken = broken || tile_is_broken<T, kElements, Shape::kThreads>(tiles.meets[1]);
            }
            broken = __syncthreads_or(broken);
        }
        return broken;
    }

    // Of the sequence's history or targets, in any tensor.
    __device__ __forceinline__ int64_t row_of(bool targets, int64_t first) const {
        return s.first_row + first + (targets ? s.history : 0);
    }

    // out += factors * meets[kMeet] from its row `turn`. The tile is rows of `from` which begin
    // with number `first` of the targets or the history. `key`: position of the first key.
    template <int kMeet>
    __device__ __forceinline__ void add(float (&out)[kColumns][4], float (&factors)[kPairs][4],
                                        int turn, bool broken, const Source& from, bool targets,
                                        int first, int from_head, int key) {
        T* meets = tiles.meets[kMeet] + turn * kDim;
        if (broken) {
            __syncthreads();  // the rows before have been added
            take_broken<T, kDim, kTurn, Shape::kThreads>(meets, tiles.broken[kMeet]);
        }
        add_weighted<T, kDim, kPairs>(out, factors, meets);
        if (broken) {
            __syncthreads();  // the rows have been multiplied: the warps take their place
            add_broken_rows(
                out, factors, from.at(row_of(targets, first + turn), from_head), from.by_row,
                from.dim, tiles.broken[kMeet],
                reinterpret_cast<float(*)[kDim]>(meets)[threadIdx.x / 32], [&](int h, int row) {
                    const int own = warp_row() + g() + 8 * h, met = turn + row;
                    return kOfQueries ? sees_key(own, key + met) : sees_key(met, key + own);
                });
        }
    }

    // Weights and score gradients of the rows met from `turn`; `first` is the position of the first
    // key.
    __device__ __forceinline__ void weigh(int first, int turn) {
#pragma unroll
        for (int n = 0; n < kPairs; ++n) {
#pragma unroll
            for (int i = 0; i < 4; ++i) {
                scores[n][i] = 0.0f;
                weights[n][i] = 0.0f;
            }
        }
        add_rows_by_rows<T, kDim, kPairs>(scores, tiles.rows[0], warp_row(),
                                          tiles.meets[0] + turn * kDim);
        if constexpr (kGradient != Gradient::kValues) {
            add_rows_by_rows<T, kDim, kPairs>(weights, tiles.rows[1], warp_row(),
                                              tiles.meets[1] + turn * kDim);
        }
        const int64_t* times = kBias ? key_times(p.inputs, s, false) : nullptr;
        const int last = static_cast<int>(s.history) - 1;
#pragma unroll
        for (int n = 0; n < kPairs; ++n) {
#pragma unroll
            for (int i = 0; i < 4; ++i) {
                const int row = warp_row() + g() + i / 2 * 8;
                const int column = turn + 8 * n + 2 * t() + i % 2;
                const int query = kOfQueries ? row : column;
                const int key = first + (kOfQueries ? column : row);
                const RowSpan& span = tiles.spans[query];
                const bool seen = sees_key(query, key);
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
                                          int64_t first, int64_t heads, int64_t dim) {
#pragma unroll
        for (int h = 0; h < 2; ++h) {
            const int row = warp_row() + g() + 8 * h;
            if (row >= tile.rows) {
                continue;
            }
            T* out = static_cast<T*>(to) + ((first + row) * heads + head()) * dim;
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
    const TileRows& tile;
    Tiles& tiles;
    float sums[kColumns][4];                       // dq or dk
    float more_sums[kOfValues ? kColumns : 1][4];  // dv
    float scores[kPairs][4], weights[kPairs][4];
};

}  // namespace pylum::cuda
