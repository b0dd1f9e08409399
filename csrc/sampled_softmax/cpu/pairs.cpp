// Candidates shared by all queries, bfloat16 on AVX512-BF16 and AMX: the three products of
// shared.cpp in pairs, of depth in logits, of candidates in d_queries, of queries in d_items.
// Exponentials are rounded to bfloat16 for the gradients only; the target's own part is float32.
//
// A task takes its queries through the candidates group by group: what was summed before a group is
// moved to the largest logit so far. d_items follows strip by strip, its weights moved likewise.
#include "sampled_softmax/pairs.h"

#include <string.h>

#include "sampled_softmax/cpu/pair_tiles.h"

namespace pylum::sampled_softmax::PYLUM_ISA {
namespace {

constexpr float kLog2e = 1.44269504f;
constexpr double kLn2 = 0.6931471805599453;
constexpr int64_t kPanelPairs = kPanel / 2;
// Lane by lane a pair of bfloat16.
inline vfloat lane_pairs(vfloat first, vfloat second) {
    uint16_t order[2 * kLanes];
    for (int l = 0; l < kLanes; ++l) {
        order[2 * l] = static_cast<uint16_t>(l);
        order[2 * l + 1] = static_cast<uint16_t>(l + kLanes);
    }
    const __m512i both = (__m512i)_mm512_cvtne2ps_pbh((__m512)second, (__m512)first);
    return (vfloat)_mm512_permutexvar_epi16(_mm512_loadu_si512(order), both);
}

// Pairs of consecutive lanes, of `first` and then of `second`.
inline vfloat row_pairs(vfloat first, vfloat second) {
    return (vfloat)_mm512_cvtne2ps_pbh((__m512)second, (__m512)first);
}

struct Pairs {
    const Params& p;
    const PairLayout at;
    float* const w;
    int32_t* const ids_low;
    int32_t* const ids_high;
    const float scale;  // of logits in powers of two

    explicit Pairs(const Params& params)
        : p(params),
          at(params),
          w(p.workspace),
          ids_low(reinterpret_cast<int32_t*>(w + at.ids)),
          ids_high(ids_low + at.panels * kPanel),
          scale(p.inverse_temperature * kLog2e) {}

    int64_t in_panel(int64_t panel) const {
        const int64_t left = p.candidates() - panel * kPanel;
        return left < kPanel ? left : kPanel;
    }
    const bfloat16* candidate(int64_t j) const {
        return item_row<bfloat16>(p, p.negatives ? p.negatives[j] : j);
    }
    float* by_item(int64_t panel, int64_t r) const {
        return w + at.by_item + (panel * at.strip + r) * kPanelPairs;
    }
    float* packed(int64_t panel) const { return w + at.packed + panel * at.depth_row * kPanel; }
    static const uint32_t* units(const float* x) { return reinterpret_cast<const uint32_t*>(x); }

    void pack(int64_t panel) const {
        const int64_t count = in_panel(panel), first = panel * kPanel;
        for (int64_t j = 0; j < kPanel; ++j) {
            const int64_t to = first + j;
            if (j >= count) {
                w[at.log_q + to] = kInfinity;  // a logit of -infinity
                ids_low[to] = ids_high[to] = -1;
                continue;
            }
            const int64_t row = p.negatives ? p.negatives[to] : to;
            w[at.log_q + to] = p.log_q ? p.log_q[row] * kLog2e : 0;
            const int64_t id = item_id(p, row);
            ids_low[to] = static_cast<int32_t>(id);
            ids_high[to] = static_cast<int32_t>(id >> 32);
        }
        pack_pairs([&](int64_t j) { return candidate(first + j); }, count, p.dim, packed(panel));
        memset(packed(panel) + at.depth * kPanel, 0,
               sizeof(float) * (at.depth_row - at.depth) * kPanel);
        for (int64_t j = 0; p.d_queries && j < kPanel; j += 2) {
            float* out = w + at.rows + (first + j) / 2 * at.width;
            pair_rows(j < count ? candidate(first + j) : nullptr,
                      j + 1 < count ? candidate(first + j + 1) : nullptr, 1.0f, 1.0f, out);
        }
    }

    // Two rows times their factors in pairs, padded with zeros; no row: zeros.
    void pair_rows(const bfloat16* first, const bfloat16* second, float a, float b,
                   float* out) const {
        for (int64_t d = 0; d < at.width; d += kLanes) {
            const int n = static_cast<int>(p.dim - d < kLanes ? p.dim - d : kLanes);
            store(out + d, lane_pairs(first ? load_lanes(first + d, n) * a : vfloat{},
                                      second ? load_lanes(second + d, n) * b : vfloat{}));
        }
    }

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
                    store(by_item(first + panel, r) + v * kLanes, lane_pairs(a[v], b[v]));
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
    void queries(int64_t strip, int64_t begin, int64_t count, const Work& mine) const {
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

    // Adds the strip's part to the gradients of the candidates of one group of panels.
    void items_gradient(int64_t strip, int64_t count, int64_t group, float* weighted,
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
    void finish_items(int64_t begin, int64_t end) const {
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

    void run() const {
        parallel_for(at.panels, p.threads, [&](int64_t panel) { pack(panel); });
        float* sums = w + (p.negatives ? at.d_rows : at.table);
        if (p.d_items) {
            memset(sums, 0, p.candidates() * at.width * sizeof(float));
        }
        for (int64_t first = 0; first < p.num_queries; first += at.strip) {
            const int64_t left = p.num_queries - first;
            const int64_t count = left < at.strip ? left : at.strip;
            for_workers(
                (count + kPairRows - 1) / kPairRows, at.workers, [&](int64_t task, int64_t worker) {
                    [[maybe_unused]] const PairRegisters registers;
                    const int64_t begin = task * kPairRows, rest = count - begin;
                    queries(first, begin, rest < kPairRows ? rest : kPairRows, work(worker));
                });
            if (p.d_items) {
                for_workers(at.groups, at.workers, [&](int64_t group, int64_t worker) {
                    [[maybe_unused]] const PairRegisters registers;
                    items_gradient(first, count, group,
                                   w + at.weighted + worker * at.strip / 2 * at.width, sums);
                });
            }
        }
        if (p.d_items) {
            const int64_t ranges = p.threads > 1 ? 2 * p.threads : 1;
            parallel_for(ranges, p.threads, [&](int64_t range) {
                finish_items(p.num_items * range / ranges, p.num_items * (range + 1) / ranges);
            });
        }
    }
};

}  // namespace

void forward_shared(const Params& p) { Pairs(p).run(); }

}  // namespace pylum::sampled_softmax::PYLUM_ISA
