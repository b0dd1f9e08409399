// The warpgroup that brings keys and values to the others, block by block, and the shared memory
// between them: see attention_forward_sm90.cu.
#pragma once

#include <type_traits>

#include "common/cuda/attention_forward_rows.h"
#include "common/cuda/ptx_hopper.h"

namespace pylum::cuda::sm90 {

constexpr int kGroup = 128;  // threads of a warpgroup
constexpr int kGroupRows = 64;
constexpr int kGroups = 2;  // that multiply
constexpr int kThreads = kGroup * (1 + kGroups);
constexpr int kStages = 4;
constexpr int kPart = 64;      // columns of the tiles that the engines know
constexpr int kProducers = 1;  // number of the producers' own barrier

struct NoBias {};

template <typename T, int kDim, typename Bias>
struct Tiles {
    // A part of 64 columns after the other, rows of 128 bytes in each.
    alignas(1024) T keys[kStages][kBlockKeys * kDim];
    T values[kStages][kBlockKeys * kDim];
    // Of each stage: keys are there, values are there, all warps are done with both. `landed`:
    // values that the producers look through first.
    uint64_t keys_full[kStages], values_full[kStages], empty[kStages], landed;
    unsigned broken_keys[kStages][2];
    float broken_values[4 * kGroups][kDim];  // of one key, for each warp
    RowSpan spans[kGroups * kGroupRows];
    Limits limits[kGroups + 1];  // of each group's rows, then of all
    int kv_head;
    Bias bias;  // TileBias, or NoBias
};

// The keys or values as the copy engine sees them; false: they are copied element by element.
struct Source {
    TensorMap map;
    bool wide;
};

template <int kCount = kStages>
struct Place {
    int stage = 0;
    uint32_t parity = 0;

    __device__ __forceinline__ void advance() {
        stage = (stage + 1) % kCount;
        parity ^= stage == 0 ? 1u : 0u;
    }
};

template <int kDim>
__device__ __forceinline__ int place_of(int row, int column) {
    return column / kPart * (kBlockKeys * kPart) + row * kPart +
           (column % kPart / 8 ^ row % 8) * 8 + column % 8;
}

__device__ __forceinline__ TileRows rows_of_group(const TileRows& tile, int group) {
    const int left = tile.rows - group * kGroupRows;
    return {tile.sequence, tile.first + group * kGroupRows, max(0, min(kGroupRows, left))};
}

// Whether some row of a warpgroup sees a key of the block.
__device__ __forceinline__ bool takes_block(const Limits& limits, const TileRows& rows, int first) {
    return rows.rows > 0 && first < limits.keys() && limits.next(first) == first;
}

// Rows of heads as the copy engine sees them, 64 to a box.
inline Source source_of_rows(const void* at, int64_t dim, int64_t heads, int64_t rows, int64_t row,
                             int64_t by_head) {
    Source source{};
    source.wide = rows <= INT32_MAX && encode_map(&source.map, at, {dim, heads, rows},
                                                  {1, heads == 1 ? row : by_head, row}, kBlockKeys);
    return source;
}

// A tile of 64 rows: zeros past `rows` and `dim`, NaN everywhere where `from` is null.
template <typename T, int kDim, int kThreads>
__device__ __forceinline__ void copy_elements(T* to, const T* from, int64_t stride, int rows,
                                              int dim) {
#pragma unroll 1
    for (int i = static_cast<int>(threadIdx.x); i < kBlockKeys * kDim; i += kThreads) {
        const int row = i / kDim, column = i % kDim;
        T x = from_float<T>(from ? 0.0f : quiet_nan());
        if (from && row < rows && column < dim) {
            x = from[row * stride + column];
        }
        to[place_of<kDim>(row, column)] = x;
    }
}

// Whether the thread's share of a tile holds an element that is not finite: its exponent has all
// bits set, and one more carries into the sign.
template <typename T, int kDim, int kThreads>
__device__ __forceinline__ bool holds_broken(const T* tile) {
    constexpr bool kHalf = std::is_same<T, __half>::value;
    constexpr uint32_t kExponents = kHalf ? 0x7c007c00u : 0x7f807f80u;
    constexpr uint32_t kLeast = kHalf ? 0x04000400u : 0x00800080u;
    uint32_t found = 0;
#pragma unroll 4
    for (int i = static_cast<int>(threadIdx.x); i < kBlockKeys * kDim / kPack<T>; i += kThreads) {
        const auto pack = load_pack<kPack<T>>(tile + i * kPack<T>);
        uint32_t pairs[kPack<T> / 2];
        memcpy(pairs, &pack, sizeof pairs);
#pragma unroll
        for (int e = 0; e < kPack<T> / 2; ++e) {
            found |= (pairs[e] & kExponents) + kLeast;
        }
    }
    return (found & 0x80008000u) != 0;
}

template <typename T, int kDim, typename Bias>
class Producer {
  public:
    __device__ __forceinline__ Producer(const AttentionParams& params, const TileRows& tile_rows,
                                        const Source& k, const Source& v,
                                        Tiles<T, kDim, Bias>& shared)
        : p(params),
          tile(tile_rows),
          s(params.batch.sequences[tile_rows.sequence]),
          keys(k),
          values(v),
          tiles(shared) {}

    __device__ __forceinline__ void run() {
        const Limits& limits = tiles.limits[kGroups];
        Place<> at;
        uint32_t landed = 0;
        for (int first = limits.next(0); first < limits.keys();
             first = limits.next(first + kBlockKeys)) {
            // One warp waits: the others might still do so when the phase after the next begins.
            if (thread() < 32) {
                barrier_wait(&tiles.empty[at.stage], at.parity ^ 1);
            }
            const int count = min(kBlockKeys, limits.keys() - first);
            if (thread() == 0) {
                tiles.broken_keys[at.stage][0] = 0;
                tiles.broken_keys[at.stage][1] = 0;
            }
            load(false, first, count, tiles.keys[at.stage], &tiles.keys_full[at.stage]);
            if constexpr (!std::is_same<Bias, NoBias>::value) {
                if (thread() < 32) {
                    tiles.bias.bring_keys(p, s, first, static_cast<int>(tile.first), at.stage);
                    __syncwarp();
                    if (thread() == 0) {
                        barrier_arrive(&tiles.keys_full[at.stage]);
                    }
                }
            }
            bool full = true;
#pragma unroll
            for (int g = 0; g < kGroups; ++g) {
                const Limits& half = tiles.limits[g];
                full =
                    full && (!takes_block(half, rows_of_group(tile, g), first) || half.full(first));
            }
            if (full) {
                load(true, first, count, tiles.values[at.stage], &tiles.values_full[at.stage]);
            } else {
                load(true, first, count, tiles.values[at.stage], &tiles.landed);
                barrier_wait(&tiles.landed, landed);
                landed ^= 1;
                take_broken(tiles.values[at.stage], tiles.broken_keys[at.stage]);
                finish_writes(&tiles.values_full[at.stage]);
            }
            at.advance();
        }
    }

  private:
    __device__ __forceinline__ static int thread() { return static_cast<int>(threadIdx.x); }

    // The engines see what all producers have written.
    __device__ __forceinline__ void finish_writes(uint64_t* barrier) {
        fence_proxies();
        named_barrier(kProducers, kGroup);
        if (thread() == 0) {
            barrier_arrive(barrier);
        }
    }

    __device__ __forceinline__ void load(bool of_values, int first, int count, T* to,
                                         uint64_t* barrier) {
        const Source& source = of_values ? values : keys;
        const int kv_head = tiles.kv_head;
        const int64_t dim = of_values ? p.in.value_dim : p.in.head_dim;
        int64_t page = 0;
        bool known = true;
        if (p.in.k_pages) {
            page = p.in.table[tile.sequence * p.in.table_row + first / kBlockKeys];
            known = page >= 0 && page < p.num_pages;
        }
        if (source.wide && known) {
            if (thread() == 0) {
                barrier_expect(barrier, kBlockKeys * kDim * sizeof(T));
                const int64_t row = p.in.k_pages ? (page * p.in.kv_heads + kv_head) * kBlockKeys
                                                 : s.first_row + first;
#pragma unroll
                for (int part = 0; part < kDim / kPart; ++part) {
                    copy_tile(to + part * kBlockKeys * kPart, source.map, part * kPart,
                              p.in.k_pages ? 0 : kv_head, static_cast<int>(row), barrier);
                }
            }
            return;
        }
        const T* from = nullptr;
        int64_t stride = dim;
        if (!known) {
            report_error(p.errors, kBadPages);
        } else if (p.in.k_pages) {
            from = static_cast<const T*>(of_values ? p.in.v_pages : p.in.k_pages) +
                   (page * p.in.kv_heads + kv_head) * kBlockKeys * dim;
        } else {
            stride = of_values ? p.in.v_row : p.in.k_row;
            from = static_cast<const T*>(of_values ? p.in.v : p.in.k) +
                   (s.first_row + first) * stride +
                   kv_head * (of_values ? p.in.v_head : p.in.k_head);
        }
        named_barrier(kProducers, kGroup);  // the tile is free
        copy_elements<T, kDim, kGroup>(to, from, stride, count, static_cast<int>(dim));
        finish_writes(barrier);
    }

    // Zeros instead of the values that are not finite; their keys are noted, a bit each.
    __device__ __forceinline__ static void take_broken(T* block, unsigned* broken_keys) {
#pragma unroll 1
        for (int i = thread(); i < kBlockKeys * kDim / kPack<T>; i += kGroup) {
            auto pack = load_pack<kPack<T>>(block + i * kPack<T>);
            bool broken = false;
#pragma unroll
            for (int e = 0; e < kPack<T>; ++e) {
                if (!finite(to_float(pack.at[e]))) {
                    pack.at[e] = from_float<T>(0.0f);
                    broken = true;
                }
            }
            if (broken) {
                store_pack<kPack<T>>(block + i * kPack<T>, pack);
                const int key = i / (kPart / kPack<T>) % kBlockKeys;
                atomicOr(&broken_keys[key / 32], 1u << key % 32);
            }
        }
    }

    const AttentionParams& p;
    const TileRows tile;
    const Sequence& s;
    const Source &keys, &values;
    Tiles<T, kDim, Bias>& tiles;
};

}  // namespace pylum::cuda::sm90
