// One thread's panel of items and selections: scoring, judging first where bytes allow it, and
// taking what reaches a threshold.
#pragma once

#include <string.h>

#include "common/cpu/tile.h"
#include "common/parallel.h"
#include "common/prefetch.h"
#include "topk/cpu/judge.h"
#include "topk/cpu/selection.h"
#ifdef PYLUM_TILES
#include "common/cpu/unit_tiles.h"
#endif

namespace pylum::topk::PYLUM_ISA {
namespace {

// Pairs of a judged tile that are worth scoring it whole.
constexpr int kDense = 24;

static_assert(sizeof(Selection) <= kSelectionBytes);

template <typename T>
struct Worker {
    const Params& p;
    const Layout& at;
    const int64_t first;  // first query of the chunk
    float* const panel;
    Selection* const selections;
    float* const thresholds;  // of the selections, where they are judged

    Worker(const Params& params, const Layout& layout, int64_t index, int64_t first_query)
        : p(params),
          at(layout),
          first(first_query),
          panel(reinterpret_cast<float*>(p.workspace + at.panels) + index * at.width * kPanel),
          selections(reinterpret_cast<Selection*>(p.workspace + at.selections) + index * at.chunk),
          thresholds(reinterpret_cast<float*>(p.workspace + at.thresholds) + index * at.padded) {}

    const T* item(int64_t row) const {
        return static_cast<const T*>(p.items) + row * p.items_stride;
    }

    void clear(int64_t index, int64_t count) const {
        int64_t* keys = reinterpret_cast<int64_t*>(p.workspace + at.keys);
        for (int64_t q = 0; q < count; ++q) {
            selections[q].keys = keys + (index * at.chunk + q) * capacity_for(p.k);
            selections[q].k = p.k;
            selections[q].clear();
        }
        for (int64_t q = 0; q < at.padded; ++q) {
            thresholds[q] = -kInfinity;
        }
    }

    // A query's items come in ascending order.
    void take(int64_t q, float score, int64_t row) const {
        Selection& selected = selections[q];
        const Rows none{};
        const Rows& exclude = p.exclude ? p.exclude[first + q] : none;
        int64_t& behind = selected.excluded;
        while (behind < exclude.count && exclude.at[behind] < row) {
            ++behind;
        }
        const bool excluded = behind < exclude.count && exclude.at[behind] == row;
        if (!excluded && score >= selected.threshold) {
            selected.push(key_of(score, row));
            if (at.padded) {
                thresholds[q] = selected.threshold;
            }
        }
    }

    // Takes the columns of a scored panel named by bits; row(j) is the item of column j.
    template <typename Row>
    void take(int64_t q, const float* scores, uint64_t bits, const Row& row) const {
        for (; bits; bits &= bits - 1) {
            const int j = __builtin_ctzll(bits);
            take(q, scores[j], row(j));
        }
    }

#ifdef PYLUM_TILES
    int64_t depth() const { return round_up((p.dim + 1) / 2, kProductPairs); }
#elif defined(__AVX512BF16__)
    int64_t depth() const { return (p.dim + 1) / 2; }
#endif

    // Bit j of a row of scores from x on: it reaches the threshold.
    template <int kVectors>
    static uint64_t reaching(const vfloat (&x)[kVectors], float threshold) {
        uint64_t bits = 0;
#pragma GCC unroll 16
        for (int v = 0; v < kVectors; ++v) {
            bits |= uint64_t{lanes_at_least(x[v], broadcast(threshold))} << v * kLanes;
        }
        return bits;
    }

    // bits[r]: items of the panel whose product with query q + r, at x, reaches its threshold; the
    // products of rows that have some are stored.
    template <int kRows>
    void products(int64_t q, const float* x, int64_t rows, float (&scores)[kRows][kPanel],
                  uint64_t (&bits)[kRows]) const {
#ifdef PYLUM_TILES
        multiply_strip<4>(reinterpret_cast<const bfloat16*>(x), 2 * at.width,
                          reinterpret_cast<const uint32_t*>(panel), kPanel, depth(), scores[0]);
        for (int r = 0; r < rows; ++r) {
            vfloat row[kPanel / kLanes];
            memcpy(row, scores[r], sizeof(row));
            bits[r] = reaching(row, selections[q + r].threshold);
        }
#else
        (void)rows;
        for (int64_t j = 0; j < kPanel; j += kTileColumns) {
            Tile<kRows, kTileVectors> tile;
            tile.clear();
#ifdef __AVX512BF16__
            tile.multiply_pairs(reinterpret_cast<const uint32_t*>(x), at.width, panel + j, kPanel,
                                depth());
#else
            tile.multiply(x, at.width, 1, panel + j, kPanel, p.dim);
#endif
#pragma GCC unroll 6
            for (int r = 0; r < kRows; ++r) {
                const uint64_t found = reaching(tile.at[r], selections[q + r].threshold);
                if (found) {
                    bits[r] |= found << j;
#pragma GCC unroll 4
                    for (int v = 0; v < kTileVectors; ++v) {
                        store(scores[r] + j + v * kLanes, tile.at[r][v]);
                    }
                }
            }
        }
#endif
    }

    // Scores up to kRows queries with the panel's count items.
    template <int kRows, typename Row>
    void score(int64_t q, const float* x, int64_t rows, int64_t count, const Row& row) const {
        alignas(64) float scores[kRows][kPanel];
        uint64_t bits[kRows] = {};
        products<kRows>(q, x, rows, scores, bits);
        const uint64_t there = ~uint64_t{0} >> (kPanel - count);
        for (int r = 0; r < rows; ++r) {
            if (bits[r] & there) {
                take(q + r, scores[r], bits[r] & there, row);
            }
        }
    }

    template <typename Row>
    void pack(int64_t count, const Row& row) const {
        const auto at_column = [&](int64_t j) { return item(row(j)); };
#ifdef __AVX512BF16__
        pack_pairs(at_column, count, p.dim, panel);
        const int64_t packed = (p.dim + 1) / 2;
        memset(panel + packed * kPanel, 0, (depth() - packed) * kPanel * sizeof(float));
#else
        pack_panel(at_column, count, p.dim, panel);
#endif
    }

    // Scores queries [begin, end) of the chunk, packed at x, with the packed items
    // row(0 .. count - 1).
    template <typename Row>
    void score_packed(int64_t begin, int64_t end, const float* x, int64_t count,
                      const Row& row) const {
        int64_t q = begin;
#ifdef PYLUM_TILES
        for (; q < end; q += kQueryTile) {
            score<kQueryTile>(q, x + q * at.width, end - q < kQueryTile ? end - q : kQueryTile,
                              count, row);
        }
#else
        for (; q + 6 <= end; q += 6) {
            score<6>(q, x + q * at.width, 6, count, row);
        }
        for (; q + 2 <= end; q += 2) {
            score<2>(q, x + q * at.width, 2, count, row);
        }
        if (q < end) {
            score<1>(q, x + q * at.width, 1, count, row);
        }
#endif
    }

    template <typename Row>
    void score_panel(int64_t begin, int64_t end, const float* x, int64_t count,
                     const Row& row) const {
        pack(count, row);
        score_packed(begin, end, x, count, row);
    }

#ifdef PYLUM_JUDGES
    // Pairs that may reach their query's threshold, a query's in ascending order of items.
    struct Pairs {
        int64_t size = 0;
        int64_t queries[kLanes];
        int64_t rows[kLanes];
    };

    // The score of every pair is the chain of multiply-adds of a tile.
    void score_pairs(const float* x, Pairs& pairs) const {
        if (pairs.size == 0) {
            return;
        }
#ifdef __AVX512BF16__
        constexpr int64_t kElements = 2 * kLanes;
#else
        constexpr int64_t kElements = kLanes;
#endif
        vfloat scores{};
        for (int64_t d = 0; d < p.dim; d += kElements) {
            vfloat a[kLanes], b[kLanes];
            for (int64_t l = 0; l < kLanes; ++l) {
                const int64_t pair = l < pairs.size ? l : 0;
                a[l] = load(x + pairs.queries[pair] * at.width + d / kElements * kLanes);
                b[l] = elements(item(pairs.rows[pair]) + d, p.dim - d);
            }
            transpose(a);
            transpose(b);
#pragma GCC unroll 16
            for (int l = 0; l < kLanes; ++l) {
#ifdef __AVX512BF16__
                scores = (vfloat)_mm512_dpbf16_ps((__m512)scores, (__m512bh)a[l], (__m512bh)b[l]);
#else
                scores += a[l] * b[l];
#endif
            }
        }
        for (int64_t l = 0; l < pairs.size; ++l) {
            take(pairs.queries[l], scores[l], pairs.rows[l]);
        }
        pairs.size = 0;
    }

    // A vector of a row's elements from y on, of which `left` are there.
    static vfloat elements(const T* y, int64_t left) {
#ifdef __AVX512BF16__
        const __mmask32 there = left >= 32 ? ~__mmask32{0} : (__mmask32{1} << left) - 1;
        return (vfloat)_mm512_maskz_loadu_epi16(there, y);
#else
        return load_lanes(y, lanes_left(left));
#endif
    }

    // The same results as score_panel() with items from `row` on; pairs may be left to be scored.
    void judge_panel(int64_t begin, int64_t end, const float* x, int64_t count, int64_t row,
                     int32_t* bytes, Pairs& pairs) const {
        const QueryBytes queries(p, at);
        const auto row_of_column = [&](int64_t j) { return row + j; };
        const PanelBytes items =
            pack_bytes<T>([&](int64_t j) { return item(row + j); }, count, p.dim, bytes);
        int32_t limits[kMostChunk + 2 * kLanes];
        judge_limits(queries, thresholds, items, p.dim, begin, end, limits);
        const uint64_t there = ~uint64_t{0} >> (kPanel - count);
        bool packed = false;
        // The next panel's items come while this one's are judged.
        const int64_t next = row + kPanel,
                      stop = next + kPanel < p.num_items ? next + kPanel : p.num_items;
        const int64_t tiles = (end - begin + kJudgedRows - 1) / kJudgedRows;
        const int64_t share = (kPanel + tiles - 1) / tiles;
        int64_t ahead = next;
        for (int64_t q = begin; q < end; q += kJudgedRows) {
            for (int64_t i = 0; i < share && ahead < stop; ++i, ++ahead) {
                prefetch(item(ahead), p.dim * sizeof(T));
            }
            const int64_t rows = end - q < kJudgedRows ? end - q : kJudgedRows;
            uint64_t bits[kJudgedRows];
            judge_tile(queries.words + q * at.words, at.words, bytes, queries.start + q, limits + q,
                       bits);
            int found = 0;
            for (int64_t r = 0; r < rows; ++r) {
                found += __builtin_popcountll(bits[r] & there);
            }
            if (found >= kDense) {
                score_pairs(x, pairs);
                if (!packed) {
                    pack(count, row_of_column);
                    packed = true;
                }
                score_packed(q, q + rows, x, count, row_of_column);
                continue;
            }
            for (int64_t r = 0; found && r < rows; ++r) {
                for (uint64_t left = bits[r] & there; left; left &= left - 1) {
                    pairs.queries[pairs.size] = q + r;
                    pairs.rows[pairs.size] = row + __builtin_ctzll(left);
                    if (++pairs.size == kLanes) {
                        score_pairs(x, pairs);
                    }
                }
            }
        }
    }
#endif
};

}  // namespace
}  // namespace pylum::topk::PYLUM_ISA
