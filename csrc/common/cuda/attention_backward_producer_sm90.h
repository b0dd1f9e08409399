// The shared memory of attention_backward_sm90.cu, and the warpgroup that fills it: the tile's own
// rows first, then, stage by stage, the blocks of 64 rows that they meet.
#pragma once

#include "common/cuda/attention_backward_bias.h"
#include "common/cuda/attention_bias_sm90.h"

namespace pylum::cuda::sm90 {

// The keys or the queries in a stage.
struct Meeting {
    // Of queries only.
    alignas(8) float level[kBlockKeys], delta[kBlockKeys];
    int begin[kBlockKeys], end[kBlockKeys];
    int first;  // position of the first key
    int count;  // 0: no more come
    // A bit for each warpgroup: some of its pairs with these rows are seen; all are.
    unsigned met, full;
    // Some of the rows are not finite, and not all of a warpgroup's pairs are seen: 0 * NaN is NaN.
    unsigned broken;
};

// What the bias adds to a block's shared memory.
template <int kCount, bool kOfQueries>
struct BackwardBias {
    TileBias<kCount> tile;
    // In a stage, where its pairs are not near: the queries' first row in the batch and positions.
    int64_t first_row[kCount];
    int positions[kCount][kBlockKeys];
    // Gradients of each warpgroup's scores.
    PairGradients<kOfQueries ? kGroupRows : 1, kBlockKeys> dscores[kGroups];
};

template <typename T, int kDim, bool kBias, bool kOfQueries>
struct BackwardTiles {
    // Of 128 columns one stage makes room for the bias.
    static constexpr int kStages = kBias && kDim == 128 ? 3 : sm90::kStages;
    static constexpr int kTile = kBlockKeys * kDim;  // as Tiles::keys
    // Of each warpgroup: q and dout, or k and v; then what they meet, the other two.
    alignas(1024) T rows[kGroups][2][kTile];
    T meets[kStages][2][kTile];
    T spare[kGroups][16 * kDim];  // 16 rows of a stage without what is not finite
    // The rows are there; of each stage: it is there, all warps are done with it. `landed`: rows
    // that the producer completes first.
    uint64_t rows_full, full[kStages], empty[kStages], landed;
    Meeting meetings[kStages];
    std::conditional_t<kBias, BackwardBias<kStages, kOfQueries>, NoBias> bias;
    TileRows tile;
    int64_t first_row;                    // of the tile, in the batch
    int context;                          // of its sequence
    RowSpan spans[kGroups * kGroupRows];  // of the tile's queries
    Limits limits[kGroups + 1];           // of each group's queries, then of all
};

struct BackwardSources {
    Source q, dout, k, v;
};

// The first keys are seen by the most queries: their tiles go first.
__device__ __forceinline__ TileRows mirrored(const TileRows& tile, const Sequence& s) {
    constexpr int kRows = kGroups * kGroupRows;
    const int64_t tiles = (s.history + kRows - 1) / kRows;
    const int64_t first = (tiles - 1) * kRows - tile.first, left = s.history - first;
    return {tile.sequence, first, static_cast<int>(left < kRows ? left : kRows)};
}

template <typename T, int kDim, bool kSilu, bool kBias, bool kOfQueries>
class BackwardProducer {
  public:
    using Tiles = BackwardTiles<T, kDim, kBias, kOfQueries>;

    __device__ __forceinline__ BackwardProducer(const AttentionGradients& params,
                                                const BackwardSources& tensors,
                                                const TileRows& tile_rows, Tiles& shared)
        : p(params),
          in(params.inputs.in),
          s(params.inputs.batch.sequences[tile_rows.sequence]),
          tile(tile_rows),
          sources(tensors),
          tiles(shared) {}

    // Queries of a head and the keys they see.
    __device__ __forceinline__ void run_queries(int head) {
        const int kv_head = head / static_cast<int>(in.heads / in.kv_heads);
        load_rows<true>(tiles.first_row, head);
        const Limits& limits = tiles.limits[kGroups];
        for (int first = limits.next(0); first < limits.keys();
             first = limits.next(first + kBlockKeys)) {
            const int count = min(kBlockKeys, limits.keys() - first);
            unsigned met = 0, full = 0;
#pragma unroll
            for (int g = 0; g < kGroups; ++g) {
                const Limits& half = tiles.limits[g];
                met |= takes_block(half, rows_of_group(tile, g), first) ? 1u << g : 0u;
                full |= half.least_end > 0 && half.full(first) ? 1u << g : 0u;
            }
            claim();
            load<false>(s.first_row + first, kv_head, count, tiles.meets[at.stage],
                        &tiles.full[at.stage], met & ~full ? Rows::kPartlySeen : Rows::kDepth);
            if constexpr (kBias) {
                if (leads()) {
                    tiles.bias.tile.bring_keys(p.inputs, s, first, static_cast<int>(tile.first),
                                               at.stage);
                }
            }
            announce(first, count, met, full);
        }
        finish();
    }

    // Keys of a head and the queries that see them, head after head of those that read it.
    __device__ __forceinline__ void run_keys(int kv_head) {
        const int group = static_cast<int>(in.heads / in.kv_heads);
        load_rows<false>(tiles.first_row, kv_head);
        // Rows before a key see it as context only.
        const int64_t begin = tile.first >= s.context ? tile.first / kBlockKeys * kBlockKeys : 0;
        for (int head = kv_head * group; head < (kv_head + 1) * group; ++head) {
            for (int64_t first = begin; first < s.history; first += kBlockKeys) {
                meet(false, first, s.history - first, head);
            }
            for (int64_t first = 0; first < s.targets; first += kBlockKeys) {
                meet(true, first, s.targets - first, head);
            }
        }
        finish();
    }

  private:
    // What becomes of a tile's rows: those that are a product's depth are zeros past the last, and
    // are looked through where a row of the block does not see them all.
    enum class Rows { kOwn, kDepth, kPartlySeen };

    __device__ __forceinline__ static int thread() { return static_cast<int>(threadIdx.x); }
    // The first warp waits for stages and says what stands in them; the others only help to copy
    // and to look through.
    __device__ __forceinline__ static bool leads() { return thread() < 32; }

    // The next stage is the producers'.
    __device__ __forceinline__ void claim() {
        if (leads()) {
            barrier_wait(&tiles.empty[at.stage], at.parity ^ 1);
        }
        if (thread() == 0) {
            tiles.meetings[at.stage].broken = 0;
        }
    }

    // All lanes have written what the stage says of its rows.
    __device__ __forceinline__ void announce(int first, int count, unsigned met, unsigned full) {
        Meeting& m = tiles.meetings[at.stage];
        __syncwarp();
        if (thread() == 0) {
            m.first = first;
            m.count = count;
            m.met = met;
            m.full = full;
            barrier_arrive(&tiles.full[at.stage]);
        }
        at.advance();
    }

    __device__ __forceinline__ void finish() {
        claim();
        if (thread() == 0) {
            barrier_arrive(&tiles.full[at.stage]);
        }
        announce(0, 0, 0, 0);
    }

    template <bool kQueries>
    __device__ __forceinline__ void load_rows(int64_t first_row, int head) {
#pragma unroll 1
        for (int group = 0; group < kGroups; ++group) {
            const int rows = rows_of_group(tile, group).rows;
            if (rows > 0) {
                // What stands past the rows is multiplied, but not stored.
                load<kQueries>(first_row + group * kGroupRows, head, rows, tiles.rows[group],
                               &tiles.rows_full, Rows::kOwn);
            }
        }
    }

    // Up to 64 queries of one class, if the tile's keys meet any.
    __device__ __forceinline__ void meet(bool targets, int64_t first, int64_t left, int head) {
        const int count = static_cast<int>(left < kBlockKeys ? left : kBlockKeys);
        const int64_t first_row = s.first_row + first + (targets ? s.history : 0);
        int begin[2] = {0, 0}, end[2] = {0, 0}, position[2] = {0, 0};
        Limits limits = no_limits(static_cast<int>(s.context));
#pragma unroll
        for (int h = 0; h < 2; ++h) {
            const int r = thread() % 32 + 32 * h;
            if (r < count) {
                const RowSpan span = targets
                                         ? target_row_span(p.inputs.batch, in.batch, s, first + r)
                                         : history_row_span(in.batch, s, first + r);
                add_row(limits, span);
                begin[h] = span.begin;
                end[h] = span.end;
                position[h] = span.position;
            }
        }
        limits = over_lanes(limits);
        if (!limits.meet(static_cast<int>(tile.first), tile.rows)) {
            return;
        }
        unsigned met = 0, full = 0;
#pragma unroll
        for (int g = 0; g < kGroups; ++g) {
            const TileRows keys = rows_of_group(tile, g);
            const int key = static_cast<int>(keys.first);
            const bool all = count == kBlockKeys && limits.least_end > 0 && limits.full(key);
            met |= keys.rows > 0 && limits.meet(key, keys.rows) ? 1u << g : 0u;
            full |= all ? 1u << g : 0u;
        }
        claim();
        Meeting& m = tiles.meetings[at.stage];
        if (leads()) {
#pragma unroll
            for (int h = 0; h < 2; ++h) {
                m.begin[thread() + 32 * h] = begin[h];
                m.end[thread() + 32 * h] = end[h];
                if constexpr (kBias) {
                    tiles.bias.positions[at.stage][thread() + 32 * h] = position[h];
                }
            }
        }
        load<true>(first_row, head, count, tiles.meets[at.stage], &tiles.full[at.stage],
                   met & ~full ? Rows::kPartlySeen : Rows::kDepth);
        if (leads()) {
#pragma unroll
            for (int h = 0; h < 2; ++h) {
                const int r = thread() + 32 * h;
                const bool mine = r < count;
                m.level[r] = mine ? row_level<kSilu>(in, first_row + r, head) : 0.0f;
                m.delta[r] = mine && !kSilu ? p.delta[(first_row + r) * in.heads + head] : 0.0f;
            }
        }
        if constexpr (kBias) {
            if (leads()) {
                bring_bias(targets, first_row, static_cast<int>(first), count);
            }
        }
        announce(0, count, met, full);
    }

    // Queries from `first` of their class.
    __device__ __forceinline__ void bring_bias(bool targets, int64_t first_row, int first,
                                               int count) {
        auto& bias = tiles.bias;
        if (targets) {  // their positions do not follow each other
            if (thread() == 0) {
                bias.tile.stages[at.stage].near = false;
            }
        } else {
            bias.tile.bring_queries(p.inputs, first_row, first, count, static_cast<int>(tile.first),
                                    at.stage);
        }
        if (thread() == 0) {
            bias.first_row[at.stage] = first_row;
        }
    }

    // Rows of q and dout, or of k and v, to two tiles; arrives at the barrier once.
    template <bool kQueries>
    __device__ __forceinline__ void load(int64_t first_row, int head, int count,
                                         T (&to)[2][Tiles::kTile], uint64_t* barrier, Rows what) {
        const Source& first = kQueries ? sources.q : sources.k;
        const Source& second = kQueries ? sources.dout : sources.v;
        const bool zeros = what != Rows::kOwn;
        const bool direct = first.wide && second.wide && what != Rows::kPartlySeen &&
                            (!zeros || count == kBlockKeys);
        const int copies = first.wide + second.wide;
        if (thread() == 0 && copies > 0) {
            uint64_t* lands = direct ? barrier : &tiles.landed;
            barrier_expect(lands, copies * Tiles::kTile * sizeof(T));
            copy(first, static_cast<int>(first_row), head, to[0], lands);
            copy(second, static_cast<int>(first_row), head, to[1], lands);
        }
        if (direct) {
            return;
        }
        if (copies > 0) {
            barrier_wait(&tiles.landed, landed);
            landed ^= 1;
        } else {
            named_barrier(kProducers, kGroup);  // the tiles are free
        }
        // Their parameters are read here, where few registers hold anything else.
        complete(first.wide, kQueries ? in.q : in.k, first_row, kQueries ? in.q_row : in.k_row,
                 head, kQueries ? in.q_head : in.k_head, in.head_dim, count, zeros, to[0]);
        complete(second.wide, kQueries ? p.dout : in.v, first_row, kQueries ? p.dout_row : in.v_row,
                 head, kQueries ? p.dout_head : in.v_head, in.value_dim, count, zeros, to[1]);
        if (what == Rows::kPartlySeen) {
            named_barrier(kProducers, kGroup);
            // Of dq the keys alone are the depth of a product.
            if (holds_broken<T, kDim, kGroup>(to[0]) ||
                (kQueries && holds_broken<T, kDim, kGroup>(to[1]))) {
                atomicOr(&tiles.meetings[at.stage].broken, 1u);
            }
        }
        fence_proxies();
        named_barrier(kProducers, kGroup);
        if (thread() == 0) {
            barrier_arrive(barrier);
        }
    }

    __device__ __forceinline__ static void copy(const Source& source, int row, int head, T* to,
                                                uint64_t* barrier) {
        if (source.wide) {
#pragma unroll
            for (int part = 0; part < kDim / kPart; ++part) {
                copy_tile(to + part * kBlockKeys * kPart, source.map, part * kPart, head, row,
                          barrier);
            }
        }
    }

    // What the copy engine does not do of a tile.
    __device__ __forceinline__ static void complete(bool wide, const void* at, int64_t first_row,
                                                    int64_t row, int head, int64_t by_head,
                                                    int64_t dim, int count, bool zeros, T* to) {
        if (!wide) {
            copy_elements<T, kDim, kGroup>(
                to, static_cast<const T*>(at) + first_row * row + head * by_head, row, count,
                static_cast<int>(dim));
        } else if (zeros) {
            clear_rows(to, count);
        }
    }

    // Rows from `first` on become zeros.
    __device__ __forceinline__ static void clear_rows(T* to, int first) {
        constexpr int kChunks = kPart / kPack<T>;
        Pack<T, kPack<T>> none;
#pragma unroll
        for (int e = 0; e < kPack<T>; ++e) {
            none.at[e] = from_float<T>(0.0f);
        }
#pragma unroll
        for (int part = 0; part < kDim / kPart; ++part) {
#pragma unroll 1
            for (int i = first * kChunks + thread(); i < kBlockKeys * kChunks; i += kGroup) {
                store_pack<kPack<T>>(to + part * kBlockKeys * kPart + i * kPack<T>, none);
            }
        }
    }

    const AttentionGradients& p;
    const AttentionInputs& in;
    const Sequence& s;
    const TileRows tile;
    const BackwardSources& sources;
    Tiles& tiles;
    Place<Tiles::kStages> at;
    uint32_t landed = 0;
};

}  // namespace pylum::cuda::sm90
