// The products of both passes that differ between AVX512-BF16 and AMX.
#pragma once

#include "sampled_softmax/cpu/rows.h"
#include "sampled_softmax/pairs.h"
#ifdef PYLUM_TILES
#include "common/cpu/unit_tiles.h"
#endif

namespace pylum::sampled_softmax {
namespace {

#ifdef PYLUM_TILES

using PairRegisters = TileRegisters;
constexpr int64_t kQueryRows = kProductRows;
// Pairs of queries that a product takes at once.
constexpr int64_t kPairStep = kProductPairs;
static_assert(kPairRows % kQueryRows == 0 && kBlockRows % (2 * kPairStep) == 0);

struct LogitTile {
    alignas(64) float products[kQueryRows * kPanel];

    void multiply(const uint32_t* x, int64_t row, const float* panel, int64_t depth) {
        multiply_strip<4>(reinterpret_cast<const bfloat16*>(x), 2 * row,
                          reinterpret_cast<const uint32_t*>(panel), kPanel,
                          round_up(depth, kProductPairs), products);
    }
    vfloat at(int r, int v) const { return load(products + r * kPanel + v * kLanes); }
};

// table[j][:] += sum over pairs i of x[i][j] times weighted[i][:], for the first `count` of the 64
// columns of x. A block of queries at a time x is transposed, 16 by 16, for the left tiles. Sums
// continue from block to block, as from strip to strip: where one ends changes no bit.
inline void add_panel_products(const uint32_t* x, const uint32_t* weighted, int64_t pairs,
                               int64_t width, int64_t count, float* table) {
    constexpr int64_t kRow = kBlockRows / 2;
    alignas(64) float left[kPanel * kRow];
    for (int64_t first = 0; first < pairs; first += kRow) {
        const int64_t stop = pairs - first < kRow ? pairs - first : kRow;
        for (int64_t i = 0; i < stop; i += kLanes) {
            for (int64_t j = 0; j < count; j += kLanes) {
                vfloat block[kLanes];
#pragma GCC unroll 16
                for (int l = 0; l < kLanes; ++l) {
                    const uint32_t* from = x + (first + i + l) * kPanel + j;
                    block[l] = i + l < stop ? load(reinterpret_cast<const float*>(from)) : vfloat{};
                }
                transpose(block);
#pragma GCC unroll 16
                for (int l = 0; l < kLanes; ++l) {
                    store(left + (j + l) * kRow + i, block[l]);
                }
            }
        }
        const int64_t depth = round_up(stop, kProductPairs);
        for (int64_t j = 0; j < count; j += kProductRows) {
            const bfloat16* a = reinterpret_cast<const bfloat16*>(left + j * kRow);
            for (int64_t d = 0; d < width; d += kProductColumns) {
                const uint32_t* b = weighted + first * width + d;
                float* c = table + j * width + d;
                const auto add = width - d >= 64   ? add_strip<4>
                                 : width - d >= 48 ? add_strip<3>
                                 : width - d >= 32 ? add_strip<2>
                                                   : add_strip<1>;
                add(a, 2 * kRow, b, width, depth, count - j, c, width);
            }
        }
    }
}
#else

struct PairRegisters {};
constexpr int64_t kQueryRows = kTileRows;
constexpr int64_t kPairStep = 1;

struct LogitTile {
    Tile<kTileRows, kTileVectors> tile;

    __attribute__((always_inline)) void multiply(const uint32_t* x, int64_t row, const float* panel,
                                                 int64_t depth) {
        tile.clear();
        tile.multiply_pairs(x, row, panel, kPanel, depth);
    }
    vfloat at(int r, int v) const { return tile.at[r][v]; }
};
#endif

}  // namespace
}  // namespace pylum::sampled_softmax
