// multiply_units() for bfloat16 on AMX: 16 rows by 64 columns are four tiles of sums, so that a
// step of 32 of depth is 4 products, 64 cycles, and 5 loads of a tile, 40 cycles. Fewer rows take
// as long: the arithmetic of one row is that of 16.
#pragma once

#include "common/cpu/tiles.h"
#include "common/cpu/units.h"

namespace pylum {
namespace {

constexpr int kProductColumns = 64;

template <int kValue>
struct Number {
    static constexpr int value = kValue;
};

// f(tile number as a constant) for each of kTiles tiles of 16 rows by 16 columns, 64 columns at
// most.
template <int kTiles, typename F>
inline void for_strip(const F& f) {
    f(Number<0>{});
    if constexpr (kTiles > 1) {
        f(Number<1>{});
    }
    if constexpr (kTiles > 2) {
        f(Number<2>{});
    }
    if constexpr (kTiles > 3) {
        f(Number<3>{});
    }
}

// Adds to the tiles of a strip over the depth.
template <int kTiles>
inline void multiply_steps(const bfloat16* a, int64_t a_row, const uint32_t* b, int64_t b_step,
                           int64_t depth) {
    for (int64_t i = 0; i < depth; i += kProductPairs) {
        load_tile<4>(a + 2 * i, 2 * a_row);
        for_strip<kTiles>([&](auto t) {
            load_tile<5 + t.value % 3>(b + i * b_step + 16 * t.value, 4 * b_step);
            multiply_tiles<t.value, 4, 5 + t.value % 3>();
        });
    }
}

// out[r][:] = sum over i of a[r][i] * b[i][:] for 16 rows.
template <int kTiles>
inline void multiply_strip(const bfloat16* a, int64_t a_row, const uint32_t* b, int64_t b_step,
                           int64_t depth, float* out) {
    for_strip<kTiles>([](auto t) { zero_tile<t.value>(); });
    multiply_steps<kTiles>(a, a_row, b, b_step, depth);
    for_strip<kTiles>(
        [&](auto t) { store_tile<t.value>(out + 16 * t.value, 4 * kProductColumns); });
}

// The same added to c, of which only the first `rows` are touched.
template <int kTiles>
inline void add_strip(const bfloat16* a, int64_t a_row, const uint32_t* b, int64_t b_step,
                      int64_t depth, int64_t rows, float* c, int64_t c_row) {
    alignas(64) float few[kProductRows * kTiles * 16] = {};
    float* to = c;
    int64_t to_row = c_row;
    if (rows < kProductRows) {
        to = few;
        to_row = kTiles * 16;
        for (int64_t r = 0; r < rows; ++r) {
            memcpy(few + r * to_row, c + r * c_row, sizeof(float) * to_row);
        }
    }
    for_strip<kTiles>([&](auto t) { load_tile<t.value>(to + 16 * t.value, 4 * to_row); });
    multiply_steps<kTiles>(a, a_row, b, b_step, depth);
    for_strip<kTiles>([&](auto t) { store_tile<t.value>(to + 16 * t.value, 4 * to_row); });
    for (int64_t r = 0; rows < kProductRows && r < rows; ++r) {
        memcpy(c + r * c_row, few + r * to_row, sizeof(float) * to_row);
    }
}

// c[r][:] = factor * sum over i of a[r][i] * b[i][:], added to c where `add`. `depth` is a multiple
// of kProductPairs and at most 128. Rows of c and of b are padded to whole vectors; what b's hold
// there is of no meaning.
template <>
inline void multiply_units<bfloat16>(const bfloat16* a, int64_t a_row, int rows, const uint32_t* b,
                                     int64_t b_step, int64_t depth, int64_t columns, float* c,
                                     int64_t c_row, bool add, float factor, const uint32_t*) {
    alignas(64) bfloat16 few[kProductRows * 256];
    alignas(64) float sums[kProductRows * kProductColumns];
    for (int r = 0; r < rows; r += kProductRows) {
        const int count = rows - r < kProductRows ? rows - r : kProductRows;
        const bfloat16* left = a + r * a_row;
        int64_t left_row = a_row;
        if (count < kProductRows) {
            // Rows past the last are of no meaning, but must not lie outside of a.
            left_row = 2 * depth;
            for (int i = 0; i < count; ++i) {
                memcpy(few + i * left_row, left + i * a_row, sizeof(bfloat16) * left_row);
            }
            left = few;
        }
        for (int64_t n = 0; n < columns; n += kProductColumns) {
            const int tiles = static_cast<int>((columns - n + 15) / 16);
            tiles == 1   ? multiply_strip<1>(left, left_row, b + n, b_step, depth, sums)
            : tiles == 2 ? multiply_strip<2>(left, left_row, b + n, b_step, depth, sums)
            : tiles == 3 ? multiply_strip<3>(left, left_row, b + n, b_step, depth, sums)
                         : multiply_strip<4>(left, left_row, b + n, b_step, depth, sums);
            for (int i = 0; i < count; ++i) {
                for (int t = 0; t < tiles && t < 4; ++t) {
                    float* to = c + (r + i) * c_row + n + t * 16;
                    const vfloat x = load(sums + i * kProductColumns + t * 16) * factor;
                    store(to, add ? load(to) + x : x);
                }
            }
        }
    }
}

}  // namespace
}  // namespace pylum
