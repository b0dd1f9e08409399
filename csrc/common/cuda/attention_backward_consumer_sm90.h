// A warpgroup of attention_backward_sm90.cu: 64 rows of a tile and their gradients.
#pragma once

#include "common/cuda/attention_backward_producer_sm90.h"
#include "common/cuda/attention_broken_rows_sm90.h"

namespace pylum::cuda::sm90 {

template <typename T, int kDim, bool kSilu, bool kBias, bool kOfQueries>
class BackwardConsumer {
  public:
    using Tiles = BackwardTiles<T, kDim, kBias, kOfQueries>;
    static constexpr int kColumns = kDim / 8;      // fragments of the sums
    static constexpr int kPairs = kBlockKeys / 8;  // of the scores
    static constexpr int kDepths = kBlockKeys / 16;
    // The gradients of the weights begin only when the scores have been weighed: the registers hold
    // no more.
    static constexpr bool kLate = kSilu && !kOfQueries && kDim == 128;

    __device__ __forceinline__ BackwardConsumer(const AttentionGradients& params, int group_number,
                                                bool of_targets, int head_number, Tiles& shared)
        : p(params), in(params.inputs.in), group(group_number), head(head_number), tiles(shared) {
        const float* part = nullptr;
        if (kOfQueries && of_targets) {
            const Sequence& s = p.inputs.batch.sequences[tiles.tile.sequence];
            part =
                p.inputs.parts + ((s.first_target + own().first) * in.heads + head) * in.head_dim;
        }
        start(part);
        if constexpr (kOfQueries) {
            take_queries();
        }
    }

    __device__ __forceinline__ void run() {
        if (own().rows > 0) {
            barrier_wait(&tiles.rows_full, 0);
        }
        for (Place<Tiles::kStages> at;; at.advance()) {
            barrier_wait(&tiles.full[at.stage], at.parity);
            const Meeting& m = tiles.meetings[at.stage];
            if (m.count == 0) {
                break;
            }
            if (m.met >> group & 1u) {
                meet(m, tiles.meets[at.stage], at.stage);
            }
            __syncwarp();
            if (threadIdx.x % 32 == 0) {
                barrier_arrive(&tiles.empty[at.stage]);
            }
        }
        if constexpr (kOfQueries) {
            store(p.dq, sums, in.scale, in.heads, in.head_dim);
        } else {
            store(p.dk, sums, in.scale, in.kv_heads, in.head_dim);
            store(p.dv, more_sums, 1.0f, in.kv_heads, in.value_dim);
        }
    }

  private:
    // Read where it is needed: dk and dv of 128 columns leave no register for it.
    __device__ __forceinline__ TileRows own() const { return rows_of_group(tiles.tile, group); }
    __device__ __forceinline__ static int g() { return static_cast<int>(threadIdx.x) % 32 / 4; }
    __device__ __forceinline__ static int t() { return static_cast<int>(threadIdx.x) % 4; }
    // Of the warpgroup's rows, for fragment elements 0 and 1, then 2 and 3.
    __device__ __forceinline__ static int row_of(int half) {
        return static_cast<int>(threadIdx.x) / 32 % 4 * 16 + g() + 8 * half;
    }

    // Adds what the pairs with the rows of a stage give; kApart: some of these rows are not finite.
    // The other warpgroup's products run while this one weighs, so that nothing is left under way
    // from block to block: ptxas would take products that cross the loop's end one after the other.
    __device__ __forceinline__ void meet(const Meeting& m, const T (&meets)[2][Tiles::kTile],
                                         int stage) {
        group_fence();
        multiply_rows(scores, tiles.rows[group][0], meets[0]);
        if constexpr (!kLate) {
            multiply_rows(dweights, tiles.rows[group][1], meets[1]);
        }
        const bool full = m.full >> group & 1u;
        const uint32_t seen = full ? ~0u : pairs_seen(m);
        group_wait<kLate ? 0 : 1>();
        settle(scores);
        if constexpr (kBias) {
            add_bias(m, stage);
        }
        uint32_t left_weights[kOfQueries ? 1 : kDepths][4], left_scores[kDepths][4];
        weigh(m, left_weights);
        if constexpr (!kOfQueries) {
            if (!full) {
                keep(left_weights, seen);
            }
            if constexpr (kLate) {
                group_fence();
                multiply_rows(dweights, tiles.rows[group][1], meets[1]);
            }
            if (!full && m.broken) {
                group_wait<0>();
            } else {
                add(more_sums, left_weights, meets[1]);
                group_wait<1>();
            }
        } else {
            group_wait<0>();
        }
        settle(dweights);
        differentiate(m, seen, left_scores);
        if (!full) {
            keep(left_scores, seen);
        }
        if (!full && m.broken) {
            if constexpr (!kOfQueries) {
                add_apart(more_sums, left_weights, seen, meets[1]);
            }
            add_apart(sums, left_scores, seen, meets[0]);
        } else {
            add(sums, left_scores, meets[0]);
        }
        group_wait<0>();
        settle(sums);
        if constexpr (!kOfQueries) {
            settle(more_sums);
        }
        if constexpr (kBias && kOfQueries) {
            add_to_tables(m);
        }
    }

    // Scores: scale * product + bias.
    __device__ __forceinline__ void add_bias(const Meeting& m, int stage) {
        const auto& bias = tiles.bias.tile;
        const BiasStage& theirs = bias.stages[stage];
        if (!theirs.near) {
            add_far_bias(m, stage);
            return;
        }
        const int row = group * kGroupRows + row_of(0), column = 2 * t();
        // Keys lie ahead of queries by their position less the query's.
        const float* window = theirs.window + (kOfQueries ? TileBias<1>::kRows - 1 - row + column
                                                          : kBlockKeys - 1 + row - column);
        const bool timed = in.bias.times != nullptr;
        const int clocks[2] = {bias.near_clock(row), bias.near_clock(row + 8)};
#pragma unroll
        for (int n = 0; n < kPairs; ++n) {
            const auto times = load_pack<2>(theirs.times + 8 * n + column);
#pragma unroll
            for (int i = 0; i < 4; ++i) {
                const int across = 8 * n + i % 2 - i / 2 * 8;
                float x = window[kOfQueries ? across : -across];
                if (timed) {
                    const int first = times.at[0], second = times.at[1];
                    x += bias.cells.at(clocks[i / 2], i % 2 ? second : first);
                }
                scores[n][i] = scores[n][i] * in.scale + x;
            }
        }
    }

    // Where clocks are far apart, or the positions of the queries do not follow each other.
    __device__ __forceinline__ void add_far_bias(const Meeting& m, int stage) {
        const Sequence& s = p.inputs.batch.sequences[tiles.tile.sequence];
        const auto& bias = tiles.bias;
        const int row = group * kGroupRows + row_of(0);
        // Keys past the history and queries past the last are of no pair: their clocks are any.
        const int last = kOfQueries ? static_cast<int>(s.history) - 1 - m.first : m.count - 1;
        const int64_t* times = kOfQueries ? key_times(p.inputs, s, false)
                                          : query_clocks(p.inputs, bias.first_row[stage]);
        times = kOfQueries && times ? times + m.first : times;
#pragma unroll
        for (int n = 0; n < kPairs; ++n) {
#pragma unroll
            for (int i = 0; i < 4; ++i) {
                const int own = row + i / 2 * 8, column = 8 * n + 2 * t() + i % 2;
                const int distance = kOfQueries ? m.first + column - tiles.spans[own].position
                                                : static_cast<int>(tiles.tile.first) + own -
                                                      bias.positions[stage][column];
                const int64_t clock = times ? times[min(column, last)] : 0;
                scores[n][i] =
                    scores[n][i] * in.scale +
                    pair_bias(p.inputs, distance, time_gap(bias.tile.clocks[own], clock));
            }
        }
    }

    // The gradients of the scores, which differentiate() has left.
    __device__ __forceinline__ void add_to_tables(const Meeting& m) {
        const int number = kProducers + 1 + group, first = group * kGroupRows;
        named_barrier(number, kGroup);
        tiles.bias.dscores[group].add(p, p.inputs.batch.sequences[tiles.tile.sequence],
                                      tiles.spans + first, tiles.bias.tile.clocks + first,
                                      own().rows, m.first, m.count,
                                      static_cast<int>(threadIdx.x) % kGroup, kGroup);
        named_barrier(number, kGroup);  // they have been read
    }

    __device__ __forceinline__ void start(const float* part) {
        const int rows = own().rows;
#pragma unroll
        for (int n = 0; n < kColumns; ++n) {
#pragma unroll
            for (int i = 0; i < 4; ++i) {
                const int row = row_of(i / 2), column = 8 * n + 2 * t() + i % 2;
                sums[n][i] = part && row < rows && column < in.head_dim
                                 ? part[row * in.heads * in.head_dim + column]
                                 : 0.0f;
                if constexpr (!kOfQueries) {
                    more_sums[n][i] = 0.0f;
                }
            }
        }
    }

    __device__ __forceinline__ void take_queries() {
        const RowSpan* spans = tiles.spans + group * kGroupRows;
        const int64_t first_row = tiles.first_row + group * kGroupRows;
        const int rows = own().rows;
#pragma unroll
        for (int h = 0; h < 2; ++h) {
            const int row = row_of(h);
            begin[h] = spans[row].begin;
            end[h] = spans[row].end;
            const bool mine = row < rows;
            level[h] = mine ? row_level<kSilu>(in, first_row + row, head) : 0.0f;
            delta[h] = mine && !kSilu ? p.delta[(first_row + row) * in.heads + head] : 0.0f;
        }
    }

    // A bit for each element of the scores' fragments.
    __device__ __forceinline__ uint32_t pairs_seen(const Meeting& m) const {
        const int context = tiles.context, first = static_cast<int>(own().first);
        uint32_t bits = 0;
#pragma unroll
        for (int n = 0; n < kPairs; ++n) {
#pragma unroll
            for (int i = 0; i < 4; ++i) {
                const int h = i / 2, column = 8 * n + 2 * t() + i % 2;
                bool seen = false;
                if constexpr (kOfQueries) {
                    seen = sees(begin[h], end[h], context, m.first + column);
                } else {
                    seen = sees(m.begin[column], m.end[column], context, first + row_of(h));
                }
                bits |= (seen ? 1u : 0u) << (4 * n + i);
            }
        }
        return bits;
    }

    // Zeros for pairs that are not seen, whatever they hold.
    __device__ __forceinline__ static void keep(uint32_t (&left)[kDepths][4], uint32_t seen) {
#pragma unroll
        for (int k = 0; k < kDepths; ++k) {
#pragma unroll
            for (int i = 0; i < 4; ++i) {
                const uint32_t pair = seen >> (8 * k + 2 * i);
                left[k][i] &= (pair & 1u ? 0xffffu : 0u) | (pair & 2u ? 0xffff0000u : 0u);
            }
        }
    }

    // A tile's 16 columns from 16 k on as a factor whose depth they are.
    __device__ __forceinline__ static uint64_t depth_of(uint64_t matrix, int k) {
        return matrix + (k / 4 * kBlockKeys * kPart + k % 4 * 16) * sizeof(T) / 16;
    }

    // to = rows * meets^T, a group of products.
    __device__ __forceinline__ static void multiply_rows(float (&to)[kPairs][4], const T* rows,
                                                         const T* meets) {
        const uint64_t a = matrix_of(rows, 1024, 0), b = matrix_of(meets, 1024, 0);
        multiply_group<T, false, true>(to, a, b);
#pragma unroll
        for (int k = 1; k < kDim / 16; ++k) {
            multiply_group<T, false>(to, depth_of(a, k), depth_of(b, k));
        }
        group_commit();
    }

    // to += left * rows of the stage.
    __device__ __forceinline__ static void add(float (&to)[kColumns][4],
                                               const uint32_t (&left)[kDepths][4], const T* rows) {
        group_fence();
        const uint64_t b = matrix_of(rows, 1024, 8192);
#pragma unroll
        for (int k = 0; k < kDepths; ++k) {
            multiply_group<T, true>(to, left[k], b + k * 16 * kPart * sizeof(T) / 16);
        }
        group_commit();
    }

    // As add(), for rows that are not all finite: 16 at a time without what is not, which is added
    // to the sums of those that see it. The same products in the same order.
    __device__ __forceinline__ void add_apart(float (&to)[kColumns][4],
                                              const uint32_t (&left)[kDepths][4], uint32_t seen,
                                              const T* rows) {
        const int thread = static_cast<int>(threadIdx.x), number = kProducers + 1 + group;
        T* spare = tiles.spare[group];
#pragma unroll 1
        for (int k = 0; k < kDepths; ++k) {
            copy_finite<T, kDim>(spare, rows, k, thread % kGroup);
            fence_proxies();
            named_barrier(number, kGroup);
            // Values, never addresses, are chosen: else the fragments would live in memory.
            uint32_t part[4];
#pragma unroll
            for (int i = 0; i < 4; ++i) {
                const uint32_t a = left[0][i], b = left[1][i], c = left[2][i], d = left[3][i];
                part[i] = k < 2 ? (k == 0 ? a : b) : (k == 2 ? c : d);
            }
            group_fence();
            multiply_group<T, true>(to, part, matrix_of(spare, 1024, 16 * kPart * sizeof(T)));
            group_commit();
            group_wait<0>();
            settle(to);
            add_broken<T, kDim>(to, part, seen >> 8 * k, rows, 16 * k, thread % 32);
            named_barrier(number, kGroup);  // the products have been made
        }
    }

    __device__ __forceinline__ static void put(uint32_t (&left)[kDepths][4], int n,
                                               const float (&x)[4]) {
        left[n / 2][n % 2 * 2] = pair_of<T>(x[0], x[1]);
        left[n / 2][n % 2 * 2 + 1] = pair_of<T>(x[2], x[3]);
    }

    // Of columns 8 n + 2 t and the next, or of the lane's rows.
    __device__ __forceinline__ void of_queries(const float (&own)[2],
                                               const float (&theirs)[kBlockKeys], int n,
                                               float (&x)[4]) const {
        Pack<float, 2> pair{{own[0], own[1]}};
        if constexpr (!kOfQueries) {
            pair = load_pack<2>(theirs + 8 * n + 2 * t());
        }
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            const float first = pair.at[0], second = pair.at[1];
            x[i] = (kOfQueries ? i / 2 : i % 2) ? second : first;
        }
    }

    // Scores become what turns the gradient of a weight into that of its score.
    template <int kCount>
    __device__ __forceinline__ void weigh(const Meeting& m, uint32_t (&left)[kCount][4]) {
        const float scale = kSilu ? in.scale : in.scale * kLog2e;
#pragma unroll
        for (int n = 0; n < kPairs; ++n) {
            float levels[4], weights[4];
            of_queries(level, m.level, n, levels);
#pragma unroll
            for (int i = 0; i < 4; ++i) {
                if constexpr (kSilu) {
                    const PairGradient pair = pair_gradient<T, true>(
                        kBias ? scores[n][i] : scores[n][i] * scale, 1.0f, levels[i], 0.0f);
                    weights[i] = pair.weight;
                    scores[n][i] = pair.score;
                } else {
                    weights[i] = exp2_of<T>(scores[n][i] * scale - levels[i]);
                    scores[n][i] = weights[i];
                }
            }
            if constexpr (!kOfQueries) {
                put(left, n, weights);
            }
        }
    }

    __device__ __forceinline__ void differentiate(const Meeting& m, uint32_t seen,
                                                  uint32_t (&left)[kDepths][4]) const {
#pragma unroll
        for (int n = 0; n < kPairs; ++n) {
            float deltas[4], x[4];
            of_queries(delta, m.delta, n, deltas);
#pragma unroll
            for (int i = 0; i < 4; ++i) {
                x[i] = scores[n][i] * (kSilu ? dweights[n][i] : dweights[n][i] - deltas[i]);
            }
            put(left, n, x);
            if constexpr (kBias && kOfQueries) {
#pragma unroll
                for (int i = 0; i < 4; ++i) {
                    tiles.bias.dscores[group].at[row_of(i / 2)][8 * n + 2 * t() + i % 2] =
                        seen >> (4 * n + i) & 1u ? x[i] : 0.0f;
                }
            }
        }
    }

    __device__ __forceinline__ void store(void* to, const float (&x)[kColumns][4], float factor,
                                          int64_t heads, int64_t dim) const {
#pragma unroll
        for (int h = 0; h < 2; ++h) {
            if (row_of(h) >= own().rows) {
                continue;
            }
            const int64_t row = tiles.first_row + group * kGroupRows + row_of(h);
            T* out = static_cast<T*>(to) + (row * heads + head) * dim;
#pragma unroll
            for (int n = 0; n < kColumns; ++n) {
                const int column = 8 * n + 2 * t();
                Pack<T, 2> pair;
                pair.at[0] = from_float<T>(x[n][2 * h] * factor);
                pair.at[1] = from_float<T>(x[n][2 * h + 1] * factor);
                if (column + 1 < dim && dim % 2 == 0) {
                    store_pack<2>(out + column, pair);
                } else if (column < dim) {
                    out[column] = pair.at[0];
                    if (column + 1 < dim) {
                        out[column + 1] = pair.at[1];
                    }
                }
            }
        }
    }

    const AttentionGradients& p;
    const AttentionInputs& in;
    const int group, head;
    Tiles& tiles;
    float sums[kColumns][4];                        // dq or dk
    float more_sums[kOfQueries ? 1 : kColumns][4];  // dv
    float scores[kPairs][4], dweights[kPairs][4];
    // Of the lane's two queries.
    int begin[2], end[2];
    float level[2], delta[2];
};

}  // namespace pylum::cuda::sm90
