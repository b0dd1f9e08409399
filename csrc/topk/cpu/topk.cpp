// A unit is a block of queries by a range of items. Its items are read once, 64 at a time, into a
// transposed panel; a register tile of 6 queries by the panel is scored, compared with each query's
// threshold, and only what passes is looked at one by one. Bound by 2 * queries * items * dim
// flops; for few queries by reading the items. On AVX512-BF16 only bfloat16 comes here, and queries
// and panels hold pairs of elements; on AMX too, and a tile is 16 queries, however many there are.
//
// Many queries are judged by bytes first (judge.h), where the CPU multiplies them: bound by a
// quarter of the flops. What may reach its threshold is scored 16 pairs at a time, by the same
// chains. Where much of a tile may, as at the beginning, the tile is scored whole.
#include "topk/cpu/worker.h"

namespace pylum::topk::PYLUM_ISA {
namespace {

constexpr int64_t kRangePanels = 64;

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
#ifdef PYLUM_JUDGES
        if (at.padded) {
            QueryBytes(p, at).pack(
                static_cast<const T*>(p.queries) + (first + q) * p.queries_stride, p.dim, at.words,
                q);
        }
#endif
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
#ifdef PYLUM_JUDGES
        int32_t* bytes =
            reinterpret_cast<int32_t*>(p.workspace + at.item_bytes) + index * at.words * kPanel;
        typename Worker<T>::Pairs pairs;
#endif
        for (int64_t unit;
             (unit = __atomic_fetch_add(&next, 1, __ATOMIC_RELAXED)) < ranges * blocks;) {
            const int64_t begin = unit % blocks * block;
            const int64_t end = begin + block < count ? begin + block : count;
            const int64_t stop = (unit / blocks + 1) * range;
            for (int64_t row = stop - range; row < stop && row < p.num_items; row += kPanel) {
                const int64_t left = p.num_items - row;
                const int64_t there = left < kPanel ? left : kPanel;
#ifdef PYLUM_JUDGES
                if (at.padded && end - begin >= kLeastJudged) {
                    worker.judge_panel(begin, end, x, there, row, bytes, pairs);
                    continue;
                }
#endif
                worker.score_panel(begin, end, x, there, [&](int64_t j) { return row + j; });
            }
#ifdef PYLUM_JUDGES
            worker.score_pairs(x, pairs);
#endif
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
