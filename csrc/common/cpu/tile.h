// Register tiles of float32 matrix products. A tile is kRows rows by kVectors vectors of
// columns; every element is one chain of fused multiply-adds in the order of the depth, so a result
// does not depend on the tile it was computed in.
#pragma once

#include "common/cpu/vector.h"

namespace pylum {
namespace {

constexpr int kTileRows = 6;
// 24 accumulators of 32 registers with AVX-512, 12 of 16 without.
constexpr int kTileVectors = kVectorBytes == 64 ? 4 : 2;
constexpr int kTileColumns = kTileVectors * kLanes;
// Columns of matrices in workspace are padded with zeros to this: a whole vector of every ISA.
constexpr int64_t kColumnPad = 16;

inline int64_t round_up(int64_t n, int64_t to) { return (n + to - 1) / to * to; }

template <int kRows, int kVectors>
struct Tile {
    vfloat at[kRows][kVectors];

    __attribute__((always_inline)) void clear() {
#pragma GCC unroll 6
        for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 4
            for (int v = 0; v < kVectors; ++v) {
                at[r][v] = vfloat{};
            }
        }
    }

    // at[r][:] += sum over i of a[r * a_row + i * a_step] * b[i * b_step + :]
    __attribute__((always_inline)) void multiply(const float* a, int64_t a_row, int64_t a_step,
                                                 const float* b, int64_t b_step, int64_t depth) {
        for (int64_t i = 0; i < depth; ++i) {
            vfloat columns[kVectors];
#pragma GCC unroll 4
            for (int v = 0; v < kVectors; ++v) {
                columns[v] = load(b + v * kLanes);
            }
#pragma GCC unroll 6
            for (int r = 0; r < kRows; ++r) {
                const float x = a[r * a_row];
#pragma GCC unroll 4
                for (int v = 0; v < kVectors; ++v) {
                    at[r][v] += x * columns[v];
                }
            }
            a += a_step;
            b += b_step;
        }
    }

#ifdef __AVX512BF16__
    // The same where elements are pairs of bfloat16 of consecutive depth.
    __attribute__((always_inline)) void multiply_pairs(const uint32_t* a, int64_t a_row,
                                                       const float* b, int64_t b_step,
                                                       int64_t depth, int64_t a_step = 1) {
        for (int64_t i = 0; i < depth; ++i) {
            __m512bh columns[kVectors];
#pragma GCC unroll 4
            for (int v = 0; v < kVectors; ++v) {
                columns[v] = (__m512bh)load(b + v * kLanes);
            }
#pragma GCC unroll 6
            for (int r = 0; r < kRows; ++r) {
                const __m512bh x = (__m512bh)_mm512_set1_epi32(static_cast<int>(a[r * a_row]));
#pragma GCC unroll 4
                for (int v = 0; v < kVectors; ++v) {
                    at[r][v] = (vfloat)_mm512_dpbf16_ps((__m512)at[r][v], x, columns[v]);
                }
            }
            a += a_step;
            b += b_step;
        }
    }
#endif

    // c[r * c_row + :] = at[r][:]
    __attribute__((always_inline)) void copy_to(float* c, int64_t c_row) const {
#pragma GCC unroll 6
        for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 4
            for (int v = 0; v < kVectors; ++v) {
                store(c + r * c_row + v * kLanes, at[r][v]);
            }
        }
    }

    // c[r * c_row + :] += at[r][:] for the first rows.
    __attribute__((always_inline)) void add_to(float* c, int64_t c_row, int64_t rows) const {
#pragma GCC unroll 6
        for (int r = 0; r < kRows; ++r) {
            if (r < rows) {
#pragma GCC unroll 4
                for (int v = 0; v < kVectors; ++v) {
                    float* p = c + r * c_row + v * kLanes;
                    store(p, load(p) + at[r][v]);
                }
            }
        }
    }
};

template <int kVectors>
inline void add_product_columns(const float* a, int64_t a_row, int64_t a_step, const float* b,
                                int64_t b_step, float* c, int64_t c_row, int64_t rows,
                                int64_t depth) {
    Tile<kTileRows, kVectors> tile;
    tile.clear();
    tile.multiply(a, a_row, a_step, b, b_step, depth);
    tile.add_to(c, c_row, rows);
}

// c[r, :] += sum over i of a[r * a_row + i * a_step] * b[i, :] for rows <= kTileRows. a is read for
// kTileRows rows; b and c have columns (a multiple of kColumnPad) contiguous columns.
inline void add_product(const float* a, int64_t a_row, int64_t a_step, const float* b,
                        int64_t b_step, float* c, int64_t c_row, int64_t rows, int64_t depth,
                        int64_t columns) {
    int64_t j = 0;
    for (; j + kTileColumns <= columns; j += kTileColumns) {
        add_product_columns<kTileVectors>(a, a_row, a_step, b + j, b_step, c + j, c_row, rows,
                                          depth);
    }
    if constexpr (kTileVectors == 4) {
        switch ((columns - j) / kLanes) {
            case 1:
                return add_product_columns<1>(a, a_row, a_step, b + j, b_step, c + j, c_row, rows,
                                              depth);
            case 2:
                return add_product_columns<2>(a, a_row, a_step, b + j, b_step, c + j, c_row, rows,
                                              depth);
            case 3:
                return add_product_columns<3>(a, a_row, a_step, b + j, b_step, c + j, c_row, rows,
                                              depth);
            default:
                return;
        }
    }
}

// Items are read in panels of kPanel rows, transposed: panel[i * kPanel + j] = row j, column i.
constexpr int64_t kPanel = 64;

// row(j) points to dim values; rows from count on are zeros.
template <typename Row>
inline void pack_panel(const Row& row, int64_t count, int64_t dim, float* panel) {
    vfloat block[kLanes];
    for (int64_t j = 0; j < kPanel; j += kLanes) {
        int64_t i = 0;
        for (; i + kLanes <= dim && j + kLanes <= count; i += kLanes) {
#pragma GCC unroll 16
            for (int l = 0; l < kLanes; ++l) {
                block[l] = load(row(j + l) + i);
            }
            transpose(block);
#pragma GCC unroll 16
            for (int c = 0; c < kLanes; ++c) {
                store(panel + (i + c) * kPanel + j, block[c]);
            }
        }
        for (; i < dim; ++i) {
            for (int64_t l = j; l < j + kLanes; ++l) {
                panel[i * kPanel + l] = l < count ? to_float(row(l)[i]) : 0;
            }
        }
    }
}

// Rows of bfloat16 in pairs: panel[i * kPanel + j] = row j, elements 2 i and 2 i + 1; the last
// element of an odd dim is paired with zero.
template <typename Row>
inline void pack_pairs(const Row& row, int64_t count, int64_t dim, float* panel) {
    pack_panel([&](int64_t j) { return reinterpret_cast<const float*>(row(j)); }, count, dim / 2,
               panel);
    for (int64_t j = 0; dim % 2 == 1 && j < kPanel; ++j) {
        const uint32_t last = j < count ? row(j)[dim - 1].bits : 0u;
        memcpy(panel + dim / 2 * kPanel + j, &last, 4);
    }
}

}  // namespace
}  // namespace pylum
