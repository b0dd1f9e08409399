// Candidates shared by all queries, bfloat16 on AVX512-BF16 and AMX: the three products of
// shared.cpp in pairs, of depth in logits, of candidates in d_queries, of queries in d_items.
// Exponentials are rounded to bfloat16 for the gradients only; the target's own part is float32.
#include "sampled_softmax/pairs.h"

#include <string.h>

#include "sampled_softmax/cpu/pair_tiles.h"

namespace pylum::sampled_softmax::PYLUM_ISA {
namespace {

constexpr float kLog2e = 1.44269504f;
constexpr double kLn2 = 0.6931471805599453;
constexpr int64_t kPanelPairs = kPanel / 2;
// Panels that one pass over d_queries takes: their candidates stay in cache.
constexpr int64_t kPassPanels = 4;

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
    float* by_query(int64_t panel, int64_t r) const {
        return w + at.by_query + (panel * at.strip + r) * kPanelPairs;
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

    // Logits of a tile of rows and the running maximum of each row, lane by lane.
    template <bool kMaskIds>
    void logits(int64_t panel, const uint32_t* x, float* out, const vint* low, const vint* high,
                vfloat* largest) const {
        LogitTile tile;
        tile.multiply(x, at.depth_row, packed(panel), at.depth);
        const int64_t to = panel * kPanel;
#pragma GCC unroll 6
        for (int r = 0; r < kQueryRows; ++r) {
#pragma GCC unroll 4
            for (int v = 0; v < kTileVectors; ++v) {
                vfloat s = tile.at(r, v) * scale - load(w + at.log_q + to + v * kLanes);
                if constexpr (kMaskIds) {
                    const vint same = (load(ids_low + to + v * kLanes) == low[r]) &
                                      (load(ids_high + to + v * kLanes) == high[r]);
                    s = same ? broadcast(-kInfinity) : s;
                }
                largest[r] = max(s, largest[r]);
                store(out + r * kPanel + v * kLanes, s);
            }
        }
    }

    // One query once its logits are there.
    struct Row {
        float target, shift;  // in powers of two
        bool absent;
        vfloat total;
        float factor;  // of its gradients
    };

    Row begin_row(int64_t n, float* logits_of_row, vfloat largest) const {
        const int64_t target_row = p.targets[n];
        const bfloat16 *q = query_row<bfloat16>(p, n), *item = item_row<bfloat16>(p, target_row);
        vfloat dot{};
        for_vectors(p.dim, [&](int64_t d, int lanes) {
            dot += load_lanes(q + d, lanes) * load_lanes(item + d, lanes);
        });
        Row row{};
        row.target = sum(dot) * scale - (p.log_q ? p.log_q[target_row] * kLog2e : 0.0f);
        if (!p.negatives) {
            logits_of_row[target_row / kPanel * kTaskRows * kPanel + target_row % kPanel] =
                -kInfinity;
        }
        const float most = max(largest);
        row.shift = most > row.target ? most : row.target;
        row.absent = (p.d_queries || p.d_items) && p.scales[n] == 0;
        return row;
    }

    void end_row(int64_t n, Row& row) const {
        const float others = sum(row.total);
        const double ahead = (static_cast<double>(row.shift) - row.target) * kLn2;
        p.losses[n] = loss_of(others, static_cast<float>(ahead), 0.0f);
        row.factor = 0.0f;
        if (p.scales && !row.absent) {
            row.factor =
                p.scales[n] / (others + static_cast<float>(::exp(-ahead))) * p.inverse_temperature;
        }
        w[at.at_target + n] = row.absent ? 0.0f : -others * row.factor;
    }

    // Exponentials of rows r and r + 1 of the strip from their logits; no second row: zeros.
    void exponents(int64_t r, const float* logits_of_rows, Row& first, Row* second) const {
        for (int64_t panel = 0; panel < at.panels; ++panel) {
            const float* s = logits_of_rows + panel * kTaskRows * kPanel;
            vfloat a[kPanel / kLanes], b[kPanel / kLanes];
            vfloat a_total{}, b_total{};
#pragma GCC unroll 4
            for (int v = 0; v < kPanel / kLanes; ++v) {
                a[v] = exp2(load(s + v * kLanes) - first.shift);
                a_total += a[v];
                a[v] = first.absent ? vfloat{} : a[v];
                b[v] = vfloat{};
                if (second) {
                    b[v] = exp2(load(s + kPanel + v * kLanes) - second->shift);
                    b_total += b[v];
                    b[v] = second->absent ? vfloat{} : b[v];
                }
            }
            first.total += a_total;
            if (second) {
                second->total += b_total;
            }
            if (p.d_queries) {
#pragma GCC unroll 2
                for (int v = 0; v < kPanel / kLanes; v += 2) {
                    store(by_query(panel, r) + v / 2 * kLanes, row_pairs(a[v], a[v + 1]));
                    store(by_query(panel, r + 1) + v / 2 * kLanes, row_pairs(b[v], b[v + 1]));
                }
            }
            if (p.d_items) {
#pragma GCC unroll 4
                for (int v = 0; v < kPanel / kLanes; ++v) {
                    store(by_item(panel, r) + v * kLanes, lane_pairs(a[v], b[v]));
                }
            }
        }
    }

    void queries_gradient(int64_t first, int64_t begin, int64_t end, const Row* rows) const {
        float* d_query = w + at.d_query;
        memset(d_query + begin * at.width, 0,
               sizeof(float) * (round_up(end, kQueryRows) - begin) * at.width);
        for (int64_t panel = 0; panel < at.panels; panel += kPassPanels) {
            const int64_t left = at.panels - panel;
            const int64_t panels = left < kPassPanels ? left : kPassPanels;
            int64_t d = 0;
            for (; d + kTileColumns <= at.width; d += kTileColumns) {
                add_items<kTileVectors>(panel, panels, begin, end, d);
            }
            for (; d < at.width; d += kLanes) {
                add_items<1>(panel, panels, begin, end, d);
            }
        }
        for (int64_t r = begin; r < end; ++r) {
            const int64_t n = first + r;
            bfloat16* out = static_cast<bfloat16*>(p.d_queries) + n * p.dim;
            const Row& row = rows[r - begin];
            if (row.factor == 0) {
                memset(out, 0, p.dim * sizeof(bfloat16));
                continue;
            }
            const float* from = d_query + r * at.width;
            const bfloat16* item = item_row<bfloat16>(p, p.targets[n]);
            const float at_target = w[at.at_target + n];
            for_vectors(p.dim, [&](int64_t d, int lanes) {
                store_lanes(out + d,
                            load(from + d) * row.factor + load_lanes(item + d, lanes) * at_target,
                            lanes);
            });
        }
    }

    template <int kVectors>
    void add_items(int64_t panel, int64_t panels, int64_t begin, int64_t end, int64_t d) const {
#ifdef PYLUM_TILES
        for (int64_t r = begin; r < end; r += kQueryRows) {
            for (int64_t i = panel; i < panel + panels; ++i) {
                add_strip<kVectors>(reinterpret_cast<const bfloat16*>(by_query(i, r)), kPanel,
                                    units(w + at.rows + i * kPanelPairs * at.width + d), at.width,
                                    kPanelPairs, kQueryRows, w + at.d_query + r * at.width + d,
                                    at.width);
            }
        }
#else
        for (int64_t r = begin; r < end; r += kTileRows) {
            Tile<kTileRows, kVectors> tile;
            tile.clear();
            for (int64_t i = panel; i < panel + panels; ++i) {
                tile.multiply_pairs(units(by_query(i, r)), kPanelPairs,
                                    w + at.rows + i * kPanelPairs * at.width + d, at.width,
                                    kPanelPairs);
            }
            tile.add_to(w + at.d_query + r * at.width + d, at.width, kTileRows);
        }
#endif
    }

    // Rows [begin, end) of the strip, at most kTaskRows of them.
    void queries(int64_t first, int64_t begin, int64_t end, float* logits_of_task) const {
        for (int64_t r = begin; r < round_up(end, kQueryRows); ++r) {
            float* out = w + at.queries + r * at.depth_row;
            memset(out + at.depth - 1, 0, sizeof(float) * (at.depth_row - at.depth + 1));
            memcpy(out, query_row<bfloat16>(p, first + (r < end ? r : begin)),
                   sizeof(bfloat16) * p.dim);
        }
        vfloat largest[kTaskRows];
        vint low[kTaskRows], high[kTaskRows];
        for (int64_t r = 0; r < kTaskRows; ++r) {
            largest[r] = broadcast(-kInfinity);
            const int64_t n = first + (begin + r < end ? begin + r : begin);
            const int64_t id = item_id(p, p.targets[n]);
            low[r] = broadcast(static_cast<int32_t>(id));
            high[r] = broadcast(static_cast<int32_t>(id >> 32));
        }
        // Without ids the only collision is the target's own row, which begin_row() masks.
        const bool mask_ids = p.item_ids || p.negatives;
        for (int64_t panel = 0; panel < at.panels; ++panel) {
            for (int64_t i = 0; i < end - begin; i += kQueryRows) {
                const uint32_t* x = units(w + at.queries + (begin + i) * at.depth_row);
                float* out = logits_of_task + (panel * kTaskRows + i) * kPanel;
                mask_ids ? logits<true>(panel, x, out, low + i, high + i, largest + i)
                         : logits<false>(panel, x, out, low + i, high + i, largest + i);
            }
        }
        Row rows[kTaskRows];
        for (int64_t i = 0; i < end - begin; i += 2) {
            const bool pair = begin + i + 1 < end;
            float* from = logits_of_task + i * kPanel;
            rows[i] = begin_row(first + begin + i, from, largest[i]);
            if (pair) {
                rows[i + 1] = begin_row(first + begin + i + 1, from + kPanel, largest[i + 1]);
            }
            exponents(begin + i, from, rows[i], pair ? rows + i + 1 : nullptr);
            end_row(first + begin + i, rows[i]);
            if (pair) {
                end_row(first + begin + i + 1, rows[i + 1]);
            }
            if (p.d_items) {
                const auto query = [&](int64_t j) {
                    const bool kept = begin + j < end && !rows[j].absent;
                    return kept ? query_row<bfloat16>(p, first + begin + j) : nullptr;
                };
                pair_rows(query(i), query(i + 1), rows[i].factor, pair ? rows[i + 1].factor : 0.0f,
                          w + at.weighted + (begin + i) / 2 * at.width);
            }
        }
        if (p.d_queries) {
            queries_gradient(first, begin, end, rows);
        }
    }

    // Adds the strip's part to the gradients of the candidates of one panel.
    void items_gradient(int64_t count, int64_t panel, float* table) const {
#ifdef PYLUM_TILES
        add_panel_products(units(by_item(panel, 0)), units(w + at.weighted), (count + 1) / 2,
                           at.width, in_panel(panel), table + panel * kPanel * at.width);
#else
        for (int64_t d = 0; d < at.width;) {
            const bool whole = d + kTileColumns <= at.width;
            for (int64_t j = 0; j < in_panel(panel); j += kTileRows) {
                const int64_t left = in_panel(panel) - j;
                float* to = table + (panel * kPanel + j) * at.width + d;
                whole ? add_queries<kTileVectors>(panel, j, left, count, d, to)
                      : add_queries<1>(panel, j, left, count, d, to);
            }
            d += whole ? kTileColumns : kLanes;
        }
#endif
    }

    template <int kVectors>
    void add_queries(int64_t panel, int64_t j, int64_t left, int64_t count, int64_t d,
                     float* to) const {
        // A tile reads kTileRows candidates; the last ones of a panel begin earlier instead.
        Tile<kTileRows, kVectors> tile;
        tile.clear();
        const int64_t from = j + kTileRows <= kPanel ? j : kPanel - kTileRows;
        tile.multiply_pairs(units(by_item(panel, 0)) + from, 1, w + at.weighted + d, at.width,
                            (count + 1) / 2, kPanel);
        for (int64_t r = j - from; r < kTileRows && r < j - from + left; ++r) {
            for (int v = 0; v < kVectors; ++v) {
                float* c = to + (r - (j - from)) * at.width + v * kLanes;
                store(c, load(c) + tile.at[r][v]);
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
            for_workers((count + kTaskRows - 1) / kTaskRows, at.workers,
                        [&](int64_t task, int64_t worker) {
                            [[maybe_unused]] const PairRegisters registers;
                            const int64_t begin = task * kTaskRows, end = begin + kTaskRows;
                            queries(first, begin, end < count ? end : count,
                                    w + at.logits + worker * at.panels * kTaskRows * kPanel);
                        });
            if (p.d_items) {
                const int64_t pairs = (count + 1) / 2;
                memset(w + at.weighted + pairs * at.width, 0,
                       sizeof(float) * (round_up(pairs, kPairStep) - pairs) * at.width);
                parallel_for(at.panels, p.threads, [&](int64_t panel) {
                    [[maybe_unused]] const PairRegisters registers;
                    items_gradient(count, panel, sums);
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
