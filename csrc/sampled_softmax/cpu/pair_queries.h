// Logits, exponentials, losses and d_queries of a task of queries, through all candidates.
#pragma once

#include "sampled_softmax/cpu/pair_space.h"

namespace pylum::sampled_softmax {
namespace {

constexpr double kLn2 = 0.6931471805599453;

struct QueryPass : PairSpace {
    using PairSpace::PairSpace;

    // What a worker keeps of its queries.
    struct Work {
        float* queries;   // [kPairRows, depth_row]
        float* logits;    // [kGroupPanels, kPairRows, 64]
        float* by_query;  // [kGroupPanels, kPairRows, 32]
        float* d_query;   // [kPairRows, width]
    };
    Work work(int64_t worker) const {
        const int64_t rows = worker * kPairRows, group = rows * kGroupPanels;
        return {w + at.queries + rows * at.depth_row, w + at.logits + group * kPanel,
                w + at.by_query + group * kPanelPairs, w + at.d_query + rows * at.width};
    }

    struct Row {
        float target, shift;  // in powers of two; shift is the largest of it and the logits so far
        float move;           // of what was summed below the shift before
        bool absent;
        vfloat total;  // of the exponentials, the target's left out
        vfloat largest;
        vint low, high;  // of the target's id
    };

    // Logits of a tile of rows; the largest of each row, lane by lane.
    void logits(int64_t panel, const uint32_t* x, float* out, Row* rows) const {
        // Without ids the only collision is the target's own row, which move_row() masks.
        const bool mask_ids = p.item_ids || p.negatives;
        LogitTile tile;
        tile.multiply(x, at.depth_row, packed(panel), at.depth);
        const int64_t to = panel * kPanel;
#pragma GCC unroll 6
        for (int r = 0; r < kQueryRows; ++r) {
            vfloat largest = rows[r].largest;
#pragma GCC unroll 4
            for (int v = 0; v < kTileVectors; ++v) {
                vfloat s = tile.at(r, v) * scale - load(w + at.log_q + to + v * kLanes);
                if (mask_ids) {
                    const vint same = (load(ids_low + to + v * kLanes) == rows[r].low) &
                                      (load(ids_high + to + v * kLanes) == rows[r].high);
                    s = same ? broadcast(-kInfinity) : s;
                }
                largest = max(s, largest);
                store(out + r * kPanel + v * kLanes, s);
            }
            rows[r].largest = largest;
        }
    }

    Row begin_row(int64_t n) const {
        const int64_t target_row = p.targets[n];
        const bfloat16 *q = query_row<bfloat16>(p, n), *item = item_row<bfloat16>(p, target_row);
        vfloat dot{};
        for_vectors(p.dim, [&](int64_t d, int lanes) {
            dot += load_lanes(q + d, lanes) * load_lanes(item + d, lanes);
        });
        const int64_t id = item_id(p, target_row);
        Row row{};
        row.target = sum(dot) * scale - (p.log_q ? p.log_q[target_row] * kLog2e : 0.0f);
        row.shift = row.target;
        row.absent = (p.d_queries || p.d_items) && p.scales[n] == 0;
        row.largest = broadcast(-kInfinity);
        row.low = broadcast(static_cast<int32_t>(id));
        row.high = broadcast(static_cast<int32_t>(id >> 32));
        return row;
    }

    // Its logits of panels [first, first + panels) are there.
    void move_row(int64_t n, int64_t first, int64_t panels, float* logits_of_row, Row& row) const {
        const int64_t target = p.targets[n], place = target / kPanel - first;
        if (!p.negatives && place >= 0 && place < panels) {
            logits_of_row[place * kPairRows * kPanel + target % kPanel] = -kInfinity;
        }
        const float most = max(row.largest);
        const float shift = most > row.shift ? most : row.shift;
        row.move = exp2(broadcast(row.shift - shift))[0];
        row.shift = shift;
        row.total *= row.move;
    }

    // Exponentials of rows r and r + 1 of the strip, i and i + 1 of the task, from their logits; no
    // second row: zeros.
    void exponents(int64_t first, int64_t panels, int64_t r, int64_t i, const Work& mine, Row& row,
                   Row* second) const {
        for (int64_t panel = 0; panel < panels; ++panel) {
            const float* s = mine.logits + (panel * kPairRows + i) * kPanel;
            vfloat a[kPanel / kLanes], b[kPanel / kLanes];
            vfloat a_total{}, b_total{};
#pragma GCC unroll 4
            for (int v = 0; v < kPanel / kLanes; ++v) {
                a[v] = exp2(load(s + v * kLanes) - row.shift);
                a_total += a[v];
                a[v] = row.absent ? vfloat{} : a[v];
                b[v] = vfloat{};
                if (second) {
                    b[v] = exp2(load(s + kPanel + v * kLanes) - second->shift);
                    b_total += b[v];
                    b[v] = second->absent ? vfloat{} : b[v];
                }
            }
            row.total += a_total;
            if (second) {
                second->total += b_total;
            }
            if (p.d_queries) {
                float* out = mine.by_query + (panel * kPairRows + i) * kPanelPairs;
#pragma GCC unroll 2
                for (int v = 0; v < kPanel / kLanes; v += 2) {
                    store(out + v / 2 * kLanes, row_pairs(a[v], a[v + 1]));
                    store(out + kPanelPairs + v / 2 * kLanes, row_pairs(b[v], b[v + 1]));
                }
            }
            if (p.d_items) {
#pragma GCC unroll 4
                for (int v = 0; v < kPanel / kLanes; ++v) {
                    store(by_item(first + panel, r) + v * kLanes, pair_lanes(a[v], b[v]));
                }
            }
        }
    }

    // d_queries of the task after panels [first, first + panels), below the shift of these.
    void add_items(int64_t first, int64_t panels, int64_t count, const Work& mine,
                   const Row* rows) const {
        int64_t d = 0;
        for (; d + kTileColumns <= at.width; d += kTileColumns) {
            add_columns<kTileVectors>(first, panels, count, d, mine, rows);
        }
        for (; d < at.width; d += kLanes) {
            add_columns<1>(first, panels, count, d, mine, rows);
        }
    }

    template <int kVectors>
    void add_columns(int64_t first, int64_t panels, int64_t count, int64_t d, const Work& mine,
                     const Row* rows) const {
#ifdef PYLUM_TILES
        for (int64_t i = 0; i < count; i += kQueryRows) {
            float* sums = mine.d_query + i * at.width + d;
            for (int64_t r = 0; r < kQueryRows; ++r) {
                for (int v = 0; v < kVectors; ++v) {
                    float* c = sums + r * at.width + v * kLanes;
                    store(c, load(c) * rows[i + r].move);
                }
            }
            for (int64_t panel = 0; panel < panels; ++panel) {
                const float* x = mine.by_query + (panel * kPairRows + i) * kPanelPairs;
                add_strip<kVectors>(
                    reinterpret_cast<const bfloat16*>(x), kPanel,
                    units(w + at.rows + (first + panel) * kPanelPairs * at.width + d), at.width,
                    kPanelPairs, kQueryRows, sums, at.width);
            }
        }
#else
        for (int64_t i = 0; i < count; i += kTileRows) {
            Tile<kTileRows, kVectors> tile;
            tile.clear();
            for (int64_t panel = 0; panel < panels; ++panel) {
                tile.multiply_pairs(units(mine.by_query + (panel * kPairRows + i) * kPanelPairs),
                                    kPanelPairs,
                                    w + at.rows + (first + panel) * kPanelPairs * at.width + d,
                                    at.width, kPanelPairs);
            }
#pragma GCC unroll 6
            for (int r = 0; r < kTileRows; ++r) {
#pragma GCC unroll 4
                for (int v = 0; v < kVectors; ++v) {
                    float* c = mine.d_query + (i + r) * at.width + d + v * kLanes;
                    store(c, load(c) * rows[i + r].move + tile.at[r][v]);
                }
            }
        }
#endif
    }

    // Losses and factors, and d_queries from its sums.
    void end_row(int64_t n, int64_t r, const float* d_query, const Row& row) const {
        const float others = sum(row.total);
        const double ahead = (static_cast<double>(row.shift) - row.target) * kLn2;
        p.losses[n] = loss_of(others, static_cast<float>(ahead), 0.0f);
        float factor = 0.0f;
        if (p.scales && !row.absent) {
            factor =
                p.scales[n] / (others + static_cast<float>(::exp(-ahead))) * p.inverse_temperature;
        }
        const float at_target = row.absent ? 0.0f : -others * factor;
        w[at.last + r] = row.shift;
        w[at.factors + r] = factor;
        w[at.at_target + n] = at_target;
        if (!p.d_queries) {
            return;
        }
        bfloat16* out = static_cast<bfloat16*>(p.d_queries) + n * p.dim;
        if (factor == 0) {
            memset(out, 0, p.dim * sizeof(bfloat16));
            return;
        }
        const bfloat16* item = item_row<bfloat16>(p, p.targets[n]);
        for_vectors(p.dim, [&](int64_t d, int lanes) {
            store_lanes(out + d,
                        load(d_query + d) * factor + load_lanes(item + d, lanes) * at_target,
                        lanes);
        });
    }

    // Queries [begin, begin + count) of the strip that starts at `strip`.
    void run(int64_t strip, int64_t begin, int64_t count, const Work& mine) const {
        const int64_t n = strip + begin, padded = round_up(count, kQueryRows);
        Row rows[kPairRows];
        for (int64_t i = 0; i < padded; ++i) {
            const int64_t of = i < count ? i : 0;
            float* out = mine.queries + i * at.depth_row;
            memset(out + at.depth - 1, 0, sizeof(float) * (at.depth_row - at.depth + 1));
            memcpy(out, query_row<bfloat16>(p, n + of), sizeof(bfloat16) * p.dim);
            rows[i] = begin_row(n + of);
        }
        if (p.d_queries) {
            memset(mine.d_query, 0, sizeof(float) * padded * at.width);
        }
        for (int64_t group = 0; group < at.groups; ++group) {
            const int64_t first = group * kGroupPanels, left = at.panels - first;
            const int64_t panels = left < kGroupPanels ? left : kGroupPanels;
            for (int64_t panel = 0; panel < panels; ++panel) {
                for (int64_t i = 0; i < padded; i += kQueryRows) {
                    logits(first + panel, units(mine.queries + i * at.depth_row),
                           mine.logits + (panel * kPairRows + i) * kPanel, rows + i);
                }
            }
            for (int64_t i = 0; i < count; ++i) {
                move_row(n + i, first, panels, mine.logits + i * kPanel, rows[i]);
                if (p.d_items) {
                    w[at.shifts + group * at.strip + begin + i] = rows[i].shift;
                }
            }
            for (int64_t i = 0; i < count; i += 2) {
                exponents(first, panels, begin + i, i, mine, rows[i],
                          i + 1 < count ? rows + i + 1 : nullptr);
            }
            if (p.d_queries) {
                add_items(first, panels, count, mine, rows);
            }
        }
        for (int64_t i = 0; i < count; ++i) {
            end_row(n + i, begin + i, mine.d_query + i * at.width, rows[i]);
        }
    }
};

}  // namespace
}  // namespace pylum::sampled_softmax
