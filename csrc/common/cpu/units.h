// Matrix products whose right side stands in the vector lanes by units of depth: a unit is one
// float32, or a pair of bfloat16 of consecutive depth. An element is one chain over the depth,
// whatever tile it was computed in. With AVX512-BF16 a pair is one instruction.
#pragma once

#include "common/cpu/rows.h"

namespace pylum {
namespace {

#ifdef __AVX512BF16__
constexpr bool kNativePairs = true;
#else
constexpr bool kNativePairs = false;
#endif

// Units that a product takes at once: its depth is padded to whole steps of them.
#ifdef PYLUM_TILES
constexpr int kUnitStep = 16;
#else
constexpr int kUnitStep = 1;
#endif

// Unit: what the right side holds. Left: elements of the left side. kDepth: of a unit.
template <typename T>
struct Units;
template <>
struct Units<float> {
    using Unit = float;
    using Left = float;
    static constexpr int kDepth = 1;
};
template <>
struct Units<bfloat16> {
    using Unit = uint32_t;
#ifdef __AVX512BF16__
    using Left = bfloat16;
#else
    using Left = float;
#endif
    static constexpr int kDepth = 2;
};

inline vfloat load_units(const float* p, int n) { return load_lanes(p, n); }
inline vfloat load_units(const uint32_t* p, int n) {
    return load_lanes(reinterpret_cast<const float*>(p), n);
}

// The two elements of bfloat16 pairs.
inline vfloat first_of_pair(vfloat units) {
    return reinterpret_cast<vfloat>(reinterpret_cast<vuint>(units) << 16);
}
inline vfloat second_of_pair(vfloat units) {
    return reinterpret_cast<vfloat>(reinterpret_cast<vuint>(units) & 0xffff0000u);
}

#ifdef __AVX512BF16__
// Lane by lane a pair, rounded to bfloat16.
inline vfloat pair_lanes(vfloat first, vfloat second) {
    uint16_t order[2 * kLanes];
    for (int l = 0; l < kLanes; ++l) {
        order[2 * l] = static_cast<uint16_t>(l);
        order[2 * l + 1] = static_cast<uint16_t>(l + kLanes);
    }
    const __m512i both = (__m512i)_mm512_cvtne2ps_pbh((__m512)second, (__m512)first);
    return (vfloat)_mm512_permutexvar_epi16(_mm512_loadu_si512(order), both);
}
#endif

constexpr int kUnitRows = 4;
constexpr int kUnitVectors = kVectorBytes == 64 ? 4 : 2;

// c[r][:] = factor * sum over i of a[r][i] * b[i][:], starting from c where `add`; kVectors vectors
// of columns, of the last one `n` lanes. a holds kDepth elements of a row for each unit; rows past
// `last` repeat it. Where `next` is given, memory from there on is asked for, as far as b is read.
template <typename T, int kRows, int kVectors>
__attribute__((noinline)) void unit_tile(const typename Units<T>::Left* a, int64_t a_row, int last,
                                         const typename Units<T>::Unit* b, int64_t b_step,
                                         int64_t depth, float* c, int64_t c_row, int n, bool add,
                                         float factor, const typename Units<T>::Unit* next) {
    const typename Units<T>::Left* row[kRows];
    float* out[kRows];
    vfloat sum[kRows][kVectors];
#pragma GCC unroll 4
    for (int r = 0; r < kRows; ++r) {
        row[r] = a + (r < last ? r : last) * a_row;
        out[r] = c + (r < last ? r : last) * c_row;
#pragma GCC unroll 4
        for (int v = 0; v < kVectors; ++v) {
            sum[r][v] = add ? load(out[r] + v * kLanes) : vfloat{};
        }
    }
    for (int64_t i = 0; i < depth; ++i) {
        vfloat units[kVectors];
#pragma GCC unroll 4
        for (int v = 0; v < kVectors; ++v) {
            units[v] = load_units(b + i * b_step + v * kLanes, v + 1 < kVectors ? kLanes : n);
        }
        if (next) {
#pragma GCC unroll 4
            for (int v = 0; v < kVectors; ++v) {
                __builtin_prefetch(next + i * b_step + v * kLanes);
            }
        }
        if constexpr (Units<T>::kDepth == 1) {
#pragma GCC unroll 4
            for (int r = 0; r < kRows; ++r) {
                const float x = row[r][i];
#pragma GCC unroll 4
                for (int v = 0; v < kVectors; ++v) {
                    sum[r][v] += x * units[v];
                }
            }
        } else {
#ifdef __AVX512BF16__
#pragma GCC unroll 4
            for (int r = 0; r < kRows; ++r) {
                int32_t pair;
                memcpy(&pair, row[r] + 2 * i, 4);
                const __m512bh x = (__m512bh)_mm512_set1_epi32(pair);
#pragma GCC unroll 4
                for (int v = 0; v < kVectors; ++v) {
                    sum[r][v] = (vfloat)_mm512_dpbf16_ps((__m512)sum[r][v], x, (__m512bh)units[v]);
                }
            }
#else
#pragma GCC unroll 4
            for (int v = 0; v < kVectors; ++v) {
                const vfloat first = first_of_pair(units[v]), second = second_of_pair(units[v]);
#pragma GCC unroll 4
                for (int r = 0; r < kRows; ++r) {
                    sum[r][v] += row[r][2 * i] * first;
                    sum[r][v] += row[r][2 * i + 1] * second;
                }
            }
#endif
        }
    }
#pragma GCC unroll 4
    for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 4
        for (int v = 0; v < kVectors; ++v) {
            store(out[r] + v * kLanes, sum[r][v] * factor);
        }
    }
}

// The same for any number of rows and columns; rows of c are padded to whole vectors. `next` is the
// right side of the product that follows, or null: its memory arrives while this one is computed.
template <typename T>
void multiply_units(const typename Units<T>::Left* a, int64_t a_row, int rows,
                    const typename Units<T>::Unit* b, int64_t b_step, int64_t depth,
                    int64_t columns, float* c, int64_t c_row, bool add, float factor,
                    const typename Units<T>::Unit* next) {
    int64_t n = 0;
    const auto tiles = [&](auto whole, auto single, int lanes) {
        int r = 0;
        for (; r + 1 < rows; r += kUnitRows) {
            const int last = rows - r < kUnitRows ? rows - r - 1 : kUnitRows - 1;
            whole(a + r * a_row, a_row, last, b + n, b_step, depth, c + r * c_row + n, c_row, lanes,
                  add, factor, r == 0 && next ? next + n : nullptr);
        }
        if (r < rows) {
            single(a + r * a_row, a_row, 0, b + n, b_step, depth, c + r * c_row + n, c_row, lanes,
                   add, factor, r == 0 && next ? next + n : nullptr);
        }
    };
    for (; n + kUnitVectors * kLanes <= columns; n += kUnitVectors * kLanes) {
        tiles(unit_tile<T, kUnitRows, kUnitVectors>, unit_tile<T, 1, kUnitVectors>, kLanes);
    }
    if constexpr (kUnitVectors == 4) {
        if (n + 2 * kLanes <= columns) {
            tiles(unit_tile<T, kUnitRows, 2>, unit_tile<T, 1, 2>, kLanes);
            n += 2 * kLanes;
        }
    }
    for (; n < columns; n += kLanes) {
        const int lanes = static_cast<int>(columns - n < kLanes ? columns - n : kLanes);
        tiles(unit_tile<T, kUnitRows, 1>, unit_tile<T, 1, 1>, lanes);
    }
}

}  // namespace
}  // namespace pylum
