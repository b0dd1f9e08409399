// d_items: the exponentials of a strip of queries times those queries, added to their candidates.
#pragma once

#include "sampled_softmax/cpu/pair_space.h"

namespace pylum::sampled_softmax {
namespace {

struct ItemPass : PairSpace {
    using PairSpace::PairSpace;

    // Adds the strip's part to the gradients of the candidates of one group of panels.
    void add_strip_of(int64_t strip, int64_t count, int64_t group, float* weighted,
                      float* table) const {
        for (int64_t r = 0; r < count; r += 2) {
            const bfloat16* query[2];
            float factor[2];
            for (int64_t j = 0; j < 2; ++j) {
                factor[j] = r + j < count ? w[at.factors + r + j] : 0.0f;
                query[j] = factor[j] == 0.0f ? nullptr : query_row<bfloat16>(p, strip + r + j);
                if (query[j]) {
                    const float below = w[at.shifts + group * at.strip + r + j];
                    factor[j] *= exp2(broadcast(below - w[at.last + r + j]))[0];
                }
            }
            pair_rows(query[0], query[1], factor[0], factor[1], weighted + r / 2 * at.width);
        }
        const int64_t pairs = (count + 1) / 2;
        memset(weighted + pairs * at.width, 0,
               sizeof(float) * (round_up(pairs, kPairStep) - pairs) * at.width);
        const int64_t first = group * kGroupPanels;
        for (int64_t panel = first; panel < first + kGroupPanels && panel < at.panels; ++panel) {
            add_panel(pairs, panel, weighted, table);
        }
    }

    void add_panel(int64_t pairs, int64_t panel, const float* weighted, float* table) const {
#ifdef PYLUM_TILES
        add_panel_products(units(by_item(panel, 0)), units(weighted), pairs, at.width,
                           in_panel(panel), table + panel * kPanel * at.width);
#else
        // A block of queries at a time: it stays in cache for the panel.
        constexpr int64_t kBlock = kPairRows / 2;
        for (int64_t first = 0; first < pairs; first += kBlock) {
            const int64_t rest = pairs - first < kBlock ? pairs - first : kBlock;
            for (int64_t d = 0; d < at.width;) {
                const bool whole = d + kTileColumns <= at.width;
                for (int64_t j = 0; j < in_panel(panel); j += kTileRows) {
                    whole ? add_queries<kTileVectors>(panel, j, first, rest, d, weighted, table)
                          : add_queries<1>(panel, j, first, rest, d, weighted, table);
                }
                d += whole ? kTileColumns : kLanes;
            }
        }
#endif
    }

    // To candidates from j of the panel on, from pairs [first, first + count) of queries.
    template <int kVectors>
    void add_queries(int64_t panel, int64_t j, int64_t first, int64_t count, int64_t d,
                     const float* weighted, float* table) const {
        // A tile reads kTileRows candidates; the last ones of a panel begin earlier instead.
        const int64_t from = j + kTileRows <= kPanel ? j : kPanel - kTileRows;
        Tile<kTileRows, kVectors> tile;
        tile.clear();
        tile.multiply_pairs(units(by_item(panel, 0) + first * kPanel) + from, 1,
                            weighted + first * at.width + d, at.width, count, kPanel);
#pragma GCC unroll 6
        for (int r = 0; r < kTileRows; ++r) {
            if (from + r < j || from + r >= in_panel(panel)) {
                continue;
            }
            float* c = table + (panel * kPanel + from + r) * at.width + d;
#pragma GCC unroll 4
            for (int v = 0; v < kVectors; ++v) {
                store(c + v * kLanes, load(c + v * kLanes) + tile.at[r][v]);
            }
        }
    }

    // d_items of a range of items from the sums of candidates, then the targets' own parts in the
    // order of the queries.
    void finish(int64_t begin, int64_t end) const {
        float* table = w + at.table;
        if (p.negatives) {
            memset(table + begin * at.width, 0, sizeof(float) * (end - begin) * at.width);
            for (int64_t j = 0; j < p.num_negatives; ++j) {
                const int64_t row = p.negatives[j];
                if (row >= begin && row < end) {
                    add_scaled(table + row * at.width, 1.0f, w + at.d_rows + j * at.width,
                               at.width);
                }
            }
        }
        for (int64_t n = 0; n < p.num_queries; ++n) {
            const int64_t row = p.targets[n];
            if (row >= begin && row < end && w[at.at_target + n] != 0) {
                add_scaled(table + row * at.width, w[at.at_target + n], query_row<bfloat16>(p, n),
                           p.dim);
            }
        }
        for (int64_t row = begin; row < end; ++row) {
            bfloat16* out = static_cast<bfloat16*>(p.d_items) + row * p.dim;
            for_vectors(p.dim, [&](int64_t d, int lanes) {
                store_lanes(out + d, load(table + row * at.width + d), lanes);
            });
        }
    }
};

}  // namespace
}  // namespace pylum::sampled_softmax
