// The inner routines of attention_block.h for bfloat16 on AVX512-BF16: products of pairs, of
// consecutive depth in scores and of consecutive keys in the weighted sums of values. Weights are
// rounded to bfloat16; their sums are not.
#pragma once

#include "common/cpu/attention_block.h"
#include "common/cpu/key_blocks.h"

namespace pylum {
namespace {

// What a block of keys and of values is to the products of T: float32, pairs or, of these, tiles.
template <typename T>
struct BlockOf {
    static constexpr bool kPairs = false, kTiles = false;
    using Keys = Rows;
    using Values = Rows;
};

#ifdef __AVX512BF16__
// Pair `u` of key `i` stands at data + i * row + u * unit.
struct PairKeys {
    const bfloat16* data;
    int64_t row, unit;
};
// Element d of the pair of values 2 i and 2 i + 1 stands at data[i * stride + d]. The first `count`
// ones are of the sequence; a partner past them is zero or of a later one of its keys.
struct PairValues {
    const uint32_t* data;
    int64_t stride;
    int count;
};

#ifndef PYLUM_TILES
template <>
struct BlockOf<bfloat16> {
    static constexpr bool kPairs = true, kTiles = false;
    using Keys = PairKeys;
    using Values = PairValues;
};
#endif

inline __m512bh pair_of(const void* p) {
    int32_t bits;
    memcpy(&bits, p, 4);
    return (__m512bh)_mm512_set1_epi32(bits);
}
inline vfloat add_pairs(vfloat sum, __m512bh a, vfloat b) {
    return (vfloat)_mm512_dpbf16_ps((__m512)sum, a, (__m512bh)b);
}

// out[i][lane] = factor * sum over pairs u of key i's pair u times columns[u][lane].
template <int kVecs>
__attribute__((noinline)) void dots(PairKeys keys, int count, const float* columns, int64_t depth,
                                    float factor, float* out) {
    constexpr int kLead = kVecs * kLanes;
    for (int first = 0; first < count; first += kTile) {
        const bfloat16* row[kTile];
        vfloat sum[kTile][kVecs];
#pragma GCC unroll 8
        for (int i = 0; i < kTile; ++i) {
            row[i] = keys.data + (first + i < count ? first + i : count - 1) * keys.row;
#pragma GCC unroll 2
            for (int v = 0; v < kVecs; ++v) {
                sum[i][v] = vfloat{};
            }
        }
        for (int64_t u = 0; u < depth; ++u) {
            vfloat column[kVecs];
#pragma GCC unroll 2
            for (int v = 0; v < kVecs; ++v) {
                column[v] = load(columns + u * kLead + v * kLanes);
            }
#pragma GCC unroll 8
            for (int i = 0; i < kTile; ++i) {
                const __m512bh x = pair_of(row[i] + u * keys.unit);
#pragma GCC unroll 2
                for (int v = 0; v < kVecs; ++v) {
                    sum[i][v] = add_pairs(sum[i][v], x, column[v]);
                }
            }
        }
#pragma GCC unroll 8
        for (int i = 0; i < kTile; ++i) {
#pragma GCC unroll 2
            for (int v = 0; v < kVecs; ++v) {
                store(out + (first + i) * kLead + v * kLanes, sum[i][v] * factor);
            }
        }
    }
}

// pairs[i][lane] = weights[2 i][lane], weights[2 i + 1][lane]; no last partner: zero.
template <int kVecs>
inline void pair_weights(const float* weights, int count, float* pairs) {
    constexpr int kLead = kVecs * kLanes;
    for (int i = 0; i < count; i += 2) {
        for (int v = 0; v < kVecs; ++v) {
            const float* at = weights + i * kLead + v * kLanes;
            const vfloat second = i + 1 < count ? load(at + kLead) : vfloat{};
            store(pairs + i / 2 * kLead + v * kLanes, pair_lanes(load(at), second));
        }
    }
}

// Row lane's element d = factor[lane] * columns[d][lane]: by pairs, half the work of one by one.
template <int kVecs>
__attribute__((noinline)) void store_columns(const float* columns, const float* factor, int count,
                                             int64_t dim, bfloat16* x, int64_t stride) {
    constexpr int kLead = kVecs * kLanes;
    for (int v = 0; v < kVecs && v * kLanes < count; ++v) {
        const vfloat scale = load(factor + v * kLanes);
        for (int64_t d = 0; d < dim; d += 2 * kLanes) {
            const int64_t left = dim - d < 2 * kLanes ? dim - d : 2 * kLanes;
            vfloat tile[kLanes];
            for (int i = 0; i < kLanes; ++i) {
                const float* at = columns + (d + 2 * i) * kLead + v * kLanes;
                tile[i] = 2 * i < left
                              ? pair_lanes(load(at) * scale,
                                           2 * i + 1 < left ? load(at + kLead) * scale : vfloat{})
                              : vfloat{};
            }
            transpose(tile);
            for (int i = 0; i < kLanes && v * kLanes + i < count; ++i) {
                bfloat16* p = x + (v * kLanes + i) * stride + d;
                if (left == 2 * kLanes) {
                    memcpy(p, &tile[i], 4 * kLanes);
                } else {
                    memcpy(p, &tile[i], sizeof(bfloat16) * left);
                }
            }
        }
    }
}

template <int kVecs, int kDims>
inline void weighted_tile(const uint32_t* values, int64_t stride, int pairs, const float* weights,
                          const float* factor, float* sums) {
    constexpr int kLead = kVecs * kLanes;
    vfloat sum[kDims][kVecs];
#pragma GCC unroll 8
    for (int d = 0; d < kDims; ++d) {
#pragma GCC unroll 2
        for (int v = 0; v < kVecs; ++v) {
            sum[d][v] = load(sums + d * kLead + v * kLanes);
            if (factor) {
                sum[d][v] *= load(factor + v * kLanes);
            }
        }
    }
    for (int i = 0; i < pairs; ++i) {
        vfloat weight[kVecs];
#pragma GCC unroll 2
        for (int v = 0; v < kVecs; ++v) {
            weight[v] = load(weights + i * kLead + v * kLanes);
        }
#pragma GCC unroll 8
        for (int d = 0; d < kDims; ++d) {
            const __m512bh x = pair_of(values + i * stride + d);
#pragma GCC unroll 2
            for (int v = 0; v < kVecs; ++v) {
                sum[d][v] = add_pairs(sum[d][v], x, weight[v]);
            }
        }
    }
#pragma GCC unroll 8
    for (int d = 0; d < kDims; ++d) {
#pragma GCC unroll 2
        for (int v = 0; v < kVecs; ++v) {
            store(sums + d * kLead + v * kLanes, sum[d][v]);
        }
    }
}

// sums[d][lane] = sums[d][lane] * factor[lane] + sum over pairs i of values[i][d] times
// pairs[i][lane]; no factor means 1.
template <int kVecs>
__attribute__((noinline)) void add_products(PairValues values, int count, const float* pairs,
                                            int64_t dim, float* sums,
                                            const float* factor = nullptr) {
    constexpr int kLead = kVecs * kLanes;
    int64_t d = 0;
    for (; d + kTile <= dim; d += kTile) {
        weighted_tile<kVecs, kTile>(values.data + d, values.stride, (count + 1) / 2, pairs, factor,
                                    sums + d * kLead);
    }
    for (; d < dim; ++d) {
        weighted_tile<kVecs, 1>(values.data + d, values.stride, (count + 1) / 2, pairs, factor,
                                sums + d * kLead);
    }
}

template <int kVecs>
inline void add_weighted(PairValues values, int count, const float* weights, const float* factor,
                         int64_t dim, float* sums) {
    alignas(64) float pairs[kBlockPairs * kVecs * kLanes];
    pair_weights<kVecs>(weights, count, pairs);
    add_products<kVecs>(values, count, pairs, dim, sums, factor);
}

// Partners of a last odd one included.
inline bool all_finite(PairValues values, int count, int64_t dim) {
    vfloat zeros{};
    for (int i = 0; i < (count + 1) / 2; ++i) {
        for_vectors(dim, [&](int64_t d, int n) {
            const vfloat pairs = load_units(values.data + i * values.stride + d, n);
            zeros += first_of_pair(pairs) * 0.0f + second_of_pair(pairs) * 0.0f;
        });
    }
    return sum(zeros) == 0.0f;
}

// add_products() where a value may be NaN or infinite: lanes that do not see it take it for zero.
template <int kVecs>
__attribute__((noinline)) void add_seen_products(PairValues values, int count, int64_t first,
                                                 const Spans& spans, const float* pairs,
                                                 int64_t dim, float* sums) {
    constexpr int kLead = kVecs * kLanes;
    for (int i = 0; i < count; i += 2) {
        for (int v = 0; v < kVecs; ++v) {
            const vint partner = i + 1 < count ? spans.sees(v, first + i + 1) : vint{};
            const vint kept = (spans.sees(v, first + i) & 0xffff) | (partner & ~0xffff);
            const vfloat weight = load(pairs + i / 2 * kLead + v * kLanes);
            for (int64_t d = 0; d < dim; ++d) {
                const vint pair = (vint)pair_of(values.data + i / 2 * values.stride + d) & kept;
                float* at = sums + d * kLead + v * kLanes;
                store(at, add_pairs(load(at), (__m512bh)pair, weight));
            }
        }
    }
}

template <int kVecs>
inline void rescale(const float* factor, int64_t dim, float* sums) {
    constexpr int kLead = kVecs * kLanes;
    for (int64_t at = 0; factor && at < dim * kLead; at += kLanes) {
        store(sums + at, load(sums + at) * load(factor + at % kLead));
    }
}

template <int kVecs>
__attribute__((noinline)) void add_seen(PairValues values, int count, int64_t first,
                                        const Spans& spans, const float* weights,
                                        const float* factor, int64_t dim, float* sums) {
    alignas(64) float pairs[kBlockPairs * kVecs * kLanes];
    pair_weights<kVecs>(weights, count, pairs);
    rescale<kVecs>(factor, dim, sums);
    add_seen_products<kVecs>(values, count, first, spans, pairs, dim, sums);
}

// columns[u][lane] = pair u of row lane of q, zero past the last up to a multiple of 16; lanes past
// `count` are of no meaning.
template <int kVecs>
inline void load_pair_columns(const bfloat16* q, int64_t stride, int count, int64_t dim,
                              float* columns) {
    memset(columns, 0, sizeof(float) * ((dim + 31) / 32 * 16) * kVecs * kLanes);
    pack_keys<kVecs * kLanes>(q, stride, count, dim, reinterpret_cast<uint32_t*>(columns));
}

// A block of packed keys, copied: rows far apart would contend for the same lines of the cache.
inline PairKeys pair_keys(const bfloat16* rows, int64_t stride, int count, int64_t dim,
                          uint32_t* buffer) {
    bfloat16* out = reinterpret_cast<bfloat16*>(buffer);
    const int64_t even = dim + dim % 2;
    for (int i = 0; i < count; ++i) {
        int64_t d = 0;
        for (; d + 2 * kLanes <= dim; d += 2 * kLanes) {
            memcpy(out + i * even + d, rows + i * stride + d, 4 * kLanes);
        }
        memcpy(out + i * even + d, rows + i * stride + d, sizeof(bfloat16) * (dim - d));
        if (dim % 2 == 1) {
            out[i * even + dim].bits = 0;
        }
    }
    return {out, even, 2};
}
#endif

}  // namespace
}  // namespace pylum
