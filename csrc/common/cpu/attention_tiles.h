// The inner routines of attention_block.h for bfloat16 on AMX. Keys are the rows of the left tiles,
// queries or dims the columns of the right ones, so that scores and sums keep their layout, queries
// in the vector lanes. Weights are rounded to bfloat16; their sums are not.
//
// A product of 16 by 16 by 32 is one instruction of 16 cycles; two tiles of rows by two of columns
// need one load of a tile, 8 cycles, for each. A block of 64 keys, 32 queries and head_dim 64 takes
// 32 products, 32 loads and 24 loads or stores of sums: 512 cycles beside some 1,300 of vector work
// on its 2,048 weights, or about 280 flops a cycle. Instructions counted on emulated tiles.
#pragma once

#include "common/cpu/attention_pairs.h"
#ifdef PYLUM_TILES
#include "common/cpu/tiles.h"
#endif

namespace pylum {
namespace {

#ifdef PYLUM_TILES
// Element d of key i stands at data[i * stride + d], zero from head_dim on; stride is a multiple of
// kProductDepth. Whole tiles of keys may be read, those past the block's are of no meaning.
struct TileKeys {
    const bfloat16* data;
    int64_t stride;
};
// Element d of value i stands at data[d * kBlockKeys + i], zero from `count` on.
struct TileValues {
    const bfloat16* data;
    int count;
    bool finite;
};

template <>
struct BlockOf<bfloat16> {
    static constexpr bool kPairs = true, kTiles = true;
    using Keys = TileKeys;
    using Values = TileValues;
};

inline int64_t whole_tiles(int64_t dim) {
    return (dim + kProductDepth - 1) / kProductDepth * kProductDepth;
}

inline TileKeys key_tiles(const bfloat16* rows, int64_t stride, int count, int64_t dim,
                          bfloat16* out) {
    const int64_t depth = whole_tiles(dim);
    for (int i = 0; i < count; ++i) {
        for (int64_t d = 0; d < depth; d += kProductDepth) {
            const int64_t left = dim - d;
            const __mmask32 there = left < kProductDepth ? (1u << left) - 1u : ~0u;
            _mm512_storeu_si512(out + i * depth + d,
                                _mm512_maskz_loadu_epi16(there, rows + i * stride + d));
        }
    }
    return {out, depth};
}

// The same of a page.
inline TileKeys page_key_tiles(const bfloat16* page, int count, int64_t dim, bfloat16* out) {
    const int64_t depth = whole_tiles(dim);
    const float* units = reinterpret_cast<const float*>(page);
    for (int key = 0; key < count; key += kLanes) {
        for (int64_t u = 0; u < depth / 2; u += kLanes) {
            vfloat tile[kLanes];
            for (int i = 0; i < kLanes; ++i) {
                const int64_t d = 2 * (u + i);
                tile[i] = d + 1 < dim ? load(units + (u + i) * kBlockKeys + key)
                          : d < dim   ? (vfloat)((vuint)load(page + d * kBlockKeys + key) >> 16)
                                      : vfloat{};
            }
            transpose(tile);
            for (int i = 0; i < kLanes; ++i) {
                store(reinterpret_cast<float*>(out + (key + i) * depth + 2 * u), tile[i]);
            }
        }
    }
    return {out, depth};
}

// pair(i, d, n) holds n elements, from d on, of values 2 i and 2 i + 1.
template <typename Pair>
inline TileValues transpose_pairs(int count, int64_t dim, const Pair& pair, bfloat16* out) {
    vfloat zeros{};
    for (int first = 0; first < count; first += kProductDepth) {
        for (int64_t d = 0; d < dim; d += kLanes) {
            const int left = static_cast<int>(dim - d < kLanes ? dim - d : kLanes);
            vfloat tile[kLanes];
            for (int i = 0; i < kLanes; ++i) {
                const int value = first + 2 * i;
                tile[i] = value < count ? pair(value / 2, d, left) : vfloat{};
                if (value + 1 == count) {
                    tile[i] = (vfloat)((vuint)tile[i] & 0xffffu);
                }
                zeros += first_of_pair(tile[i]) * 0.0f + second_of_pair(tile[i]) * 0.0f;
            }
            transpose(tile);
            for (int i = 0; i < left; ++i) {
                store(reinterpret_cast<float*>(out + (d + i) * kBlockKeys + first), tile[i]);
            }
        }
    }
    return {out, count, sum(zeros) == 0.0f};
}

inline TileValues value_tiles(const bfloat16* rows, int64_t stride, int count, int64_t dim,
                              bfloat16* out) {
    const auto pair = [&](int i, int64_t d, int n) {
        const bfloat16* row = rows + 2 * i * stride + d;
        const vfloat second = 2 * i + 1 < count ? load_lanes(row + stride, n) : vfloat{};
        return (vfloat)((vuint)load_lanes(row, n) >> 16 | (vuint)second);
    };
    return transpose_pairs(count, dim, pair, out);
}

inline TileValues page_value_tiles(const bfloat16* page, int count, int64_t dim, bfloat16* out) {
    const float* pairs = reinterpret_cast<const float*>(page);
    return transpose_pairs(
        count, dim, [&](int i, int64_t d, int n) { return load_lanes(pairs + i * dim + d, n); },
        out);
}

// Adds to two tiles of rows by kColumns of columns over `steps` products; tiles 0 to 3 hold them.
// Rows of the right side are pairs of depth.
template <int kColumns>
inline void multiply_block(const bfloat16* left, int64_t left_row, const float* right,
                           int64_t right_row, int steps) {
    for (int i = 0; i < steps; ++i) {
        load_tile<4>(left + i * kProductDepth, 2 * left_row);
        load_tile<5>(left + i * kProductDepth + kProductRows * left_row, 2 * left_row);
        const float* columns = right + i * kProductPairs * right_row;
        load_tile<6>(columns, 4 * right_row);
        multiply_tiles<0, 4, 6>();
        multiply_tiles<2, 5, 6>();
        if constexpr (kColumns == 2) {
            load_tile<7>(columns + kLanes, 4 * right_row);
            multiply_tiles<1, 4, 7>();
            multiply_tiles<3, 5, 7>();
        }
    }
}
template <int kColumns>
inline void load_sums(const float* sums, int64_t row) {
    load_tile<0>(sums, 4 * row);
    load_tile<2>(sums + kProductRows * row, 4 * row);
    if constexpr (kColumns == 2) {
        load_tile<1>(sums + kLanes, 4 * row);
        load_tile<3>(sums + kProductRows * row + kLanes, 4 * row);
    }
}
template <int kColumns>
inline void store_sums(float* sums, int64_t row) {
    store_tile<0>(sums, 4 * row);
    store_tile<2>(sums + kProductRows * row, 4 * row);
    if constexpr (kColumns == 2) {
        store_tile<1>(sums + kLanes, 4 * row);
        store_tile<3>(sums + kProductRows * row + kLanes, 4 * row);
    }
}

// out[i][lane] = factor * sum over d of key i's element d times columns; `depth` is in pairs.
template <int kVecs>
__attribute__((noinline)) void dots(TileKeys keys, int count, const float* columns, int64_t depth,
                                    float factor, float* out) {
    constexpr int kLead = kVecs * kLanes;
    const int steps = static_cast<int>((depth + kProductPairs - 1) / kProductPairs);
    for (int first = 0; first < count; first += 2 * kProductRows) {
        zero_tile<0>();
        zero_tile<1>();
        zero_tile<2>();
        zero_tile<3>();
        multiply_block<kVecs>(keys.data + first * keys.stride, keys.stride, columns, kLead, steps);
        store_sums<kVecs>(out + first * kLead, kLead);
    }
    for (int at = 0; at < count * kLead; at += kLanes) {
        store(out + at, load(out + at) * factor);
    }
}

// sums[d][lane] += sum over i of value i's element d times its weight; pairs[i / 2][lane] holds
// those of two values, and is filled up with zeros.
template <int kVecs>
__attribute__((noinline)) void add_products(TileValues values, int count, float* pairs, int64_t dim,
                                            float* sums) {
    constexpr int kLead = kVecs * kLanes;
    const int steps = (count + kProductDepth - 1) / kProductDepth;
    const int used = (count + 1) / 2 * kLead;
    memset(pairs + used, 0, sizeof(float) * (steps * kProductPairs * kLead - used));
    for (int64_t d = 0; d < dim; d += 2 * kProductRows) {
        load_sums<kVecs>(sums + d * kLead, kLead);
        multiply_block<kVecs>(values.data + d * kBlockKeys, kBlockKeys, pairs, kLead, steps);
        store_sums<kVecs>(sums + d * kLead, kLead);
    }
}

inline bool is_finite(bfloat16 x) { return (x.bits & 0x7f80u) != 0x7f80u; }

// The same where a value may be NaN or infinite: it is taken for zero, then added to the lanes that
// see it.
template <int kVecs>
__attribute__((noinline)) void add_seen_products(TileValues values, int count, int64_t first,
                                                 const Spans& spans, float* pairs, int64_t dim,
                                                 float* sums) {
    constexpr int kLead = kVecs * kLanes;
    alignas(64) bfloat16 finite[kMaxDim * kBlockKeys] = {};
    for (int64_t at = 0; at < dim * kBlockKeys; ++at) {
        finite[at].bits = is_finite(values.data[at]) ? values.data[at].bits : uint16_t{0};
    }
    add_products<kVecs>(TileValues{finite, values.count, true}, count, pairs, dim, sums);
    for (int64_t d = 0; d < dim; ++d) {
        for (int i = 0; i < count; ++i) {
            const bfloat16 value = values.data[d * kBlockKeys + i];
            for (int v = 0; v < kVecs && !is_finite(value); ++v) {
                const vfloat pair = load(pairs + i / 2 * kLead + v * kLanes);
                const vfloat weight = i % 2 == 0 ? first_of_pair(pair) : second_of_pair(pair);
                float* at = sums + d * kLead + v * kLanes;
                const vfloat old = load(at);
                store(at, spans.sees(v, first + i) ? old + to_float(value) * weight : old);
            }
        }
    }
}

template <int kVecs>
__attribute__((noinline)) void add_weighted(TileValues values, int count, const float* weights,
                                            const float* factor, int64_t dim, float* sums) {
    alignas(64) float pairs[kBlockPairs * kVecs * kLanes];
    pair_weights<kVecs>(weights, count, pairs);
    rescale<kVecs>(factor, dim, sums);
    add_products<kVecs>(values, count, pairs, dim, sums);
}

inline bool all_finite(TileValues values, int, int64_t) { return values.finite; }

template <int kVecs>
__attribute__((noinline)) void add_seen(TileValues values, int count, int64_t first,
                                        const Spans& spans, const float* weights,
                                        const float* factor, int64_t dim, float* sums) {
    alignas(64) float pairs[kBlockPairs * kVecs * kLanes];
    pair_weights<kVecs>(weights, count, pairs);
    rescale<kVecs>(factor, dim, sums);
    add_seen_products<kVecs>(values, count, first, spans, pairs, dim, sums);
}
#endif

}  // namespace
}  // namespace pylum
