// Candidates shared by all queries. A strip of queries at a time: its logits (one product), their
// exponentials, d_queries (second product) by tasks of 48 queries, then d_items (third product) by
// tasks of 64 candidates. Bound by the three products of 2 * queries * candidates * dim flops.
#include <string.h>

#include "sampled_softmax/cpu/rows.h"

namespace pylum::sampled_softmax::PYLUM_ISA {
namespace {

template <typename T>
struct Shared {
    const Params& p;
    const Layout at;
    float* const packed;
    float* const rows;
    float* const log_q;
    int32_t* const ids_low;
    int32_t* const ids_high;
    float* const exponents;
    float* const scaled;
    float* const weighted;
    float* const others;

    explicit Shared(const Params& params)
        : p(params),
          at(params),
          packed(p.workspace + at.packed),
          rows(p.workspace + at.rows),
          log_q(p.workspace + at.log_q),
          ids_low(reinterpret_cast<int32_t*>(p.workspace + at.ids)),
          ids_high(ids_low + at.panels * kPanel),
          exponents(p.workspace + at.exponents),
          scaled(p.workspace + at.scaled),
          weighted(p.workspace + at.weighted),
          others(p.workspace + at.others) {}

    int64_t in_panel(int64_t panel) const {
        const int64_t left = p.candidates() - panel * kPanel;
        return left < kPanel ? left : kPanel;
    }
    float* panel_exponents(int64_t panel, int64_t n) const {
        return exponents + (panel * at.strip + n) * kPanel;
    }

    void pack(int64_t panel) const {
        const int64_t count = in_panel(panel);
        const T* pointers[kPanel];
        for (int64_t j = 0; j < kPanel; ++j) {
            const int64_t to = panel * kPanel + j;
            if (j >= count) {
                log_q[to] = kInfinity;  // a logit of -infinity
                ids_low[to] = ids_high[to] = -1;
                continue;
            }
            const int64_t row = p.negatives ? p.negatives[to] : to;
            pointers[j] = item_row<T>(p, row);
            log_q[to] = p.log_q ? p.log_q[row] : 0;
            const int64_t id = item_id(p, row);
            ids_low[to] = static_cast<int32_t>(id);
            ids_high[to] = static_cast<int32_t>(id >> 32);
            if (p.d_queries) {
                copy_scaled(rows + to * at.width, 1.0f, pointers[j], p.dim, at.width);
            }
        }
        pack_panel([&](int64_t j) { return pointers[j]; }, count, p.dim,
                   packed + panel * p.dim * kPanel);
    }

    // Logits of a tile of rows and the running maximum of each row, lane by lane.
    template <bool kMaskIds>
    void logits(int64_t panel, const float* x, float* out, const vint* low, const vint* high,
                vfloat* largest) const {
        const float* b = packed + panel * p.dim * kPanel;
        for (int64_t j = 0; j < kPanel; j += kTileColumns) {
            Tile<kTileRows, kTileVectors> tile;
            tile.clear();
            tile.multiply(x, at.width, 1, b + j, kPanel, p.dim);
            const int64_t to = panel * kPanel + j;
#pragma GCC unroll 6
            for (int r = 0; r < kTileRows; ++r) {
#pragma GCC unroll 4
                for (int v = 0; v < kTileVectors; ++v) {
                    vfloat s = tile.at[r][v] - load(log_q + to + v * kLanes);
                    if constexpr (kMaskIds) {
                        const vint same = (load(ids_low + to + v * kLanes) == low[r]) &
                                          (load(ids_high + to + v * kLanes) == high[r]);
                        s = same ? broadcast(-kInfinity) : s;
                    }
                    largest[r] = max(s, largest[r]);
                    store(out + r * kPanel + j + v * kLanes, s);
                }
            }
        }
    }

    // Exponentials in place of the logits of query n, row r of the strip; its loss; and returns the
    // factor of its gradients.
    float finish_row(int64_t n, int64_t r, vfloat largest) const {
        const int64_t row = p.targets[n];
        const float target = dot(scaled + r * at.width, item_row<T>(p, row), p.dim) -
                             (p.log_q ? p.log_q[row] : 0.0f);
        float* at_target = nullptr;
        if (!p.negatives) {
            at_target = panel_exponents(row / kPanel, r) + row % kPanel;
            *at_target = -kInfinity;
        }
        const float most = max(largest);
        const float shift = most > target ? most : target;
        const bool keep = p.d_queries || p.d_items;
        const bool absent = keep && p.scales[n] == 0;
        vfloat total{};
        for (int64_t panel = 0; panel < at.panels; ++panel) {
            float* e = panel_exponents(panel, r);
            vfloat part{};
#pragma GCC unroll 4
            for (int64_t j = 0; j < kPanel; j += kLanes) {
                const vfloat x = exp(load(e + j) - shift);
                part += x;
                if (keep) {
                    store(e + j, absent ? vfloat{} : x);
                }
            }
            total += part;
        }
        const float sum_others = sum(total);
        p.losses[n] = loss_of(sum_others, shift, target);
        if (!keep) {
            return 0;
        }
        float factor = 0;
        if (!absent) {
            factor = p.scales[n] / (sum_others + expf(target - shift)) * p.inverse_temperature;
        }
        others[n] = absent ? 0 : sum_others;
        if (at_target) {
            *at_target = -others[n];
        }
        copy_scaled(weighted + n * at.width, factor, query_row<T>(p, n), absent ? 0 : p.dim,
                    at.width);
        return factor;
    }

    void queries_gradient(int64_t first, int64_t begin, int64_t end, const float* factors) const {
        float* d_query = p.workspace + at.d_query;
        for (int64_t i = begin * at.width; i < round_up(end, kTileRows) * at.width; ++i) {
            d_query[i] = 0;
        }
        for (int64_t panel = 0; panel < at.panels; ++panel) {
            const float* b = rows + panel * kPanel * at.width;
            for (int64_t r = begin; r < end; r += kTileRows) {
                add_product(panel_exponents(panel, r), kPanel, 1, b, at.width,
                            d_query + r * at.width, at.width, kTileRows, in_panel(panel), at.width);
            }
        }
        for (int64_t r = begin; r < end; ++r) {
            const int64_t n = first + r;
            float* row = d_query + r * at.width;
            if (p.negatives) {
                add_scaled(row, -others[n], item_row<T>(p, p.targets[n]), p.dim);
            }
            T* out = static_cast<T*>(p.d_queries) + n * p.dim;
            const float factor = factors[r - begin];
            if (factor == 0) {
                memset(out, 0, p.dim * sizeof(T));
            } else {
                write_row(out, row, factor, p.dim);
            }
        }
    }

    void queries(int64_t first, int64_t begin, int64_t end) const {
        for (int64_t r = begin; r < round_up(end, kTileRows); ++r) {
            copy_scaled(scaled + r * at.width, p.inverse_temperature,
                        query_row<T>(p, first + (r < end ? r : begin)), p.dim, at.width);
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
        // Without ids the only collision is the target's own row, which finish_row() masks.
        const bool mask_ids = p.item_ids || p.negatives;
        for (int64_t panel = 0; panel < at.panels; ++panel) {
            for (int64_t r = begin; r < end; r += kTileRows) {
                const float* x = scaled + r * at.width;
                float* out = panel_exponents(panel, r);
                const int64_t i = r - begin;
                mask_ids ? logits<true>(panel, x, out, low + i, high + i, largest + i)
                         : logits<false>(panel, x, out, low + i, high + i, largest + i);
            }
        }
        float factors[kTaskRows];
        for (int64_t r = begin; r < end; ++r) {
            factors[r - begin] = finish_row(first + r, r, largest[r - begin]);
        }
        if (p.d_queries) {
            queries_gradient(first, begin, end, factors);
        }
    }

    // Adds the strip's part to the gradients of the candidates of one panel.
    void items_gradient(int64_t first, int64_t count, int64_t panel, float* table) const {
        for (int64_t begin = 0; begin < count; begin += kBlockRows) {
            const int64_t depth = count - begin < kBlockRows ? count - begin : kBlockRows;
            for (int64_t j = 0; j < in_panel(panel); j += kTileRows) {
                const int64_t left = in_panel(panel) - j;
                add_product(panel_exponents(panel, begin) + j, 1, kPanel,
                            weighted + (first + begin) * at.width, at.width,
                            table + (panel * kPanel + j) * at.width, at.width,
                            left < kTileRows ? left : kTileRows, depth, at.width);
            }
        }
    }

    void run() const {
        parallel_for(at.panels, p.threads, [&](int64_t panel) { pack(panel); });
        float* table = nullptr;
        if (p.d_items) {
            table = p.negatives ? p.workspace + at.d_rows : table_of(p, at);
            memset(table, 0, p.candidates() * at.width * sizeof(float));
        }
        for (int64_t first = 0; first < p.num_queries; first += at.strip) {
            const int64_t left = p.num_queries - first;
            const int64_t count = left < at.strip ? left : at.strip;
            parallel_for((count + kTaskRows - 1) / kTaskRows, p.threads, [&](int64_t task) {
                const int64_t begin = task * kTaskRows;
                const int64_t end = begin + kTaskRows;
                queries(first, begin, end < count ? end : count);
            });
            if (p.d_items) {
                parallel_for(at.panels, p.threads,
                             [&](int64_t panel) { items_gradient(first, count, panel, table); });
            }
        }
        if (!p.d_items) {
            return;
        }
        if (p.negatives) {
            scatter_items<T>(p, at, [&](float* to, int64_t begin, int64_t end) {
                for (int64_t j = 0; j < p.num_negatives; ++j) {
                    if (p.negatives[j] >= begin && p.negatives[j] < end) {
                        add_scaled(to + p.negatives[j] * at.width, 1.0f, table + j * at.width,
                                   at.width);
                    }
                }
            });
        } else {
            write_items<T>(p, at, 0, p.num_items);
        }
    }
};

}  // namespace

void forward_shared(const Params& p) {
    p.dtype == DType::kFloat32 ? Shared<float>(p).run() : Shared<bfloat16>(p).run();
}

}  // namespace pylum::sampled_softmax::PYLUM_ISA
