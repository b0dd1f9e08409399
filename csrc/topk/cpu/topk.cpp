// A unit is a block of queries by a range of items. Its items are read once, 64 at a time, into a
// transposed panel; a register tile of 6 queries by the panel is scored, compared with each query's
// threshold, and only what passes is looked at one by one. Bound by 2 * queries * items * dim
// flops; for few queries by reading the items. On AVX512-BF16 only bfloat16 comes here, and queries
// and panels hold pairs of elements; on AMX too, and a tile is 16 queries, however many there are.
#include <string.h>

#include "common/cpu/tile.h"
#include "common/parallel.h"
#include "topk/cpu/selection.h"
#ifdef PYLUM_TILES
#include "common/cpu/unit_tiles.h"
#endif

namespace pylum::topk::PYLUM_ISA {
namespace {

constexpr int64_t kRangePanels = 64;

static_assert(sizeof(Selection) <= kSelectionBytes);

template <typename T>
struct Worker {
    const Params& p;
    const Layout& at;
    const int64_t first;  // first query of the chunk
    float* const panel;
    Selection* const selections;

    Worker(const Params& params, const Layout& layout, int64_t index, int64_t first_query)
        : p(params),
          at(layout),
          first(first_query),
          panel(reinterpret_cast<float*>(p.workspace + at.panels) + index * at.width * kPanel),
          selections(reinterpret_cast<Selection*>(p.workspace + at.selections) + index * at.chunk) {
    }

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
    }

    // Takes the columns of a scored panel named by bits; row(j) is the item of column j.
    template <typename Row>
    void take(int64_t q, const float* scores, uint64_t bits, const Row& row) const {
        Selection& selected = selections[q];
        const Rows none{};
        const Rows& exclude = p.exclude ? p.exclude[first + q] : none;
        for (; bits; bits &= bits - 1) {
            const int j = __builtin_ctzll(bits);
            int64_t& behind = selected.excluded;
            while (behind < exclude.count && exclude.at[behind] < row(j)) {
                ++behind;
            }
            const bool excluded = behind < exclude.count && exclude.at[behind] == row(j);
            if (!excluded && scores[j] >= selected.threshold) {
                selected.push(key_of(scores[j], row(j)));
            }
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

    // Scores queries [begin, end) of the chunk, packed at x, with items row(0 .. count - 1).
    template <typename Row>
    void score_panel(int64_t begin, int64_t end, const float* x, int64_t count,
                     const Row& row) const {
        const auto at_column = [&](int64_t j) { return item(row(j)); };
#ifdef __AVX512BF16__
        pack_pairs(at_column, count, p.dim, panel);
        const int64_t packed = (p.dim + 1) / 2;
        memset(panel + packed * kPanel, 0, (depth() - packed) * kPanel * sizeof(float));
#else
        pack_panel(at_column, count, p.dim, panel);
#endif
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
};

template <typename T>
void pack_query(const Params& p, const Layout& at, int64_t query, float* x) {
    const T* from = static_cast<const T*>(p.queries) + query * p.queries_stride;
#ifdef __AVX512BF16__
    memset(x, 0, at.width * sizeof(float));
    memcpy(x, from, p.dim * sizeof(T));
#else
    for (int64_t i = 0; i < p.dim; ++i) {
        x[i] = to_float(from[i]);
    }
    memset(x + p.dim, 0, (at.width - p.dim) * sizeof(float));
#endif
}

// All items for the queries [first, first + count).
template <typename T>
void all_items(const Params& p, const Layout& at, int64_t first, int64_t count) {
    float* x = reinterpret_cast<float*>(p.workspace + at.queries);
    for (int64_t q = 0; q < count; ++q) {
        pack_query<T>(p, at, first + q, x + q * at.width);
    }
    const int64_t range = kRangePanels * kPanel;
    const int64_t ranges = (p.num_items + range - 1) / range;
    // Blocks of queries as large as leave each worker several units.
    const int64_t wanted = round_up(count * ranges / (4 * at.workers) + 1, 48);
    const int64_t block = wanted < count ? wanted : count;
    const int64_t blocks = (count + block - 1) / block;
    // Units of ascending items: within a worker, a tie always goes to the item already selected.
    int64_t next = 0;
    parallel_for(at.workers, p.threads, [&](int64_t index) {
#ifdef PYLUM_TILES
        const TileRegisters tiles;
#endif
        const Worker<T> worker(p, at, index, first);
        worker.clear(index, count);
        for (int64_t unit;
             (unit = __atomic_fetch_add(&next, 1, __ATOMIC_RELAXED)) < ranges * blocks;) {
            const int64_t begin = unit % blocks * block;
            const int64_t end = begin + block < count ? begin + block : count;
            const int64_t stop = (unit / blocks + 1) * range;
            for (int64_t row = stop - range; row < stop && row < p.num_items; row += kPanel) {
                const int64_t left = p.num_items - row;
                worker.score_panel(begin, end, x, left < kPanel ? left : kPanel,
                                   [&](int64_t j) { return row + j; });
            }
        }
    });
    parallel_for(count, at.workers > 1 ? p.threads : 1, [&](int64_t q) {
        Selection& result = Worker<T>(p, at, 0, first).selections[q];
        for (int64_t index = 1; index < at.workers; ++index) {
            const Selection& part = Worker<T>(p, at, index, first).selections[q];
            for (int64_t i = 0; i < part.size; ++i) {
                result.push(part.keys[i]);
            }
        }
        result.finish(p.scores + (first + q) * p.k, p.indices + (first + q) * p.k);
    });
}

template <typename T>
void own_candidates(const Params& p, const Layout& at) {
    int64_t next = 0;
    parallel_for(at.workers, p.threads, [&](int64_t index) {
#ifdef PYLUM_TILES
        const TileRegisters tiles;
#endif
        float* x =
            reinterpret_cast<float*>(p.workspace + at.queries) + index * kQueryTile * at.width;
        for (int64_t query;
             (query = __atomic_fetch_add(&next, 1, __ATOMIC_RELAXED)) < p.num_queries;) {
            pack_query<T>(p, at, query, x);
            const Worker<T> worker(p, at, index, query);
            worker.clear(index, 1);
            const Rows& rows = p.candidates[query];
            for (int64_t i = 0; i < rows.count; i += kPanel) {
                const int64_t left = rows.count - i;
                worker.score_panel(0, 1, x, left < kPanel ? left : kPanel,
                                   [&](int64_t j) { return rows.at[i + j]; });
            }
            worker.selections[0].finish(p.scores + query * p.k, p.indices + query * p.k);
        }
    });
}

template <typename T>
void run(const Params& p) {
    const Layout at(p);
    if (p.candidates) {
        own_candidates<T>(p, at);
        return;
    }
    for (int64_t first = 0; first < p.num_queries; first += at.chunk) {
        const int64_t left = p.num_queries - first;
        all_items<T>(p, at, first, left < at.chunk ? left : at.chunk);
    }
}

}  // namespace

void forward(const Params& p) {
    if (p.k == 0) {
        return;
    }
#ifndef __AVX512BF16__
    if (p.dtype == DType::kFloat32) {
        return run<float>(p);
    }
#endif
    run<bfloat16>(p);
}

}  // namespace pylum::topk::PYLUM_ISA
