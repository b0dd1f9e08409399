// The workspace of shared candidates in products of bfloat16 pairs or tiles (cpu/pairs.cpp).
#pragma once

#include "sampled_softmax/sampled_softmax.h"

namespace pylum::sampled_softmax {
namespace {

// Where each part begins, in floats. The size is O((items + queries) * dim) plus one strip of
// queries' exponentials; the results do not depend on how long the strip is.
struct PairLayout {
    int64_t panels = 0;     // ceil(candidates / 64)
    int64_t width = 0;      // dim rounded up to 16
    int64_t depth = 0;      // pairs of a row, ceil(dim / 2)
    int64_t depth_row = 0;  // that rounded up to 16
    int64_t strip = 0;      // queries of one strip, a multiple of kBlockRows
    int64_t workers = 0;    // that take queries at the same time
    int64_t packed = 0;     // [panels, depth_row, 64] pairs of depth: candidates transposed
    int64_t rows = 0;       // [panels * 32, width] pairs of candidates
    int64_t log_q = 0;      // [panels * 64], in powers of two
    int64_t ids = 0;        // [2, panels * 64] int32: low and high halves of the candidates' ids
    int64_t queries = 0;    // [strip, depth_row] pairs of depth
    int64_t logits = 0;     // [workers, panels, kTaskRows, 64], in powers of two
    int64_t by_query = 0;   // [panels, strip, 32] pairs of candidates: exponentials
    int64_t by_item = 0;    // [panels, strip / 2, 64] pairs of queries: the same
    int64_t weighted = 0;   // [strip / 2, width] pairs of queries * their gradient factor
    int64_t d_query = 0;    // [strip, width]: d_queries before its factor
    int64_t at_target = 0;  // [num_queries]: what a query adds to its target's gradient, of itself
    int64_t table = 0;      // [num_items, width]: d_items
    int64_t d_rows = 0;     // [panels * 64, width]: gradients of shared negatives
    int64_t total = 0;

    // Which inputs take pairs where the ISA has them.
    static bool suits(const Params& p) { return p.dtype == DType::kBFloat16 && !p.per_query; }

    explicit PairLayout(const Params& p) {
        const auto take = [&](int64_t floats) {
            const int64_t at = total;
            total += (floats + 15) / 16 * 16;
            return at;
        };
        const auto up = [](int64_t n, int64_t to) { return (n + to - 1) / to * to; };
        width = up(p.dim, 16);
        depth = (p.dim + 1) / 2;
        depth_row = up(depth, 16);
        panels = up(p.candidates(), 64) / 64;
        const int64_t fitting = (int64_t{1} << 21) / (panels * 64 + 1) / kBlockRows * kBlockRows;
        const int64_t busy = up(p.threads * kTaskRows, kBlockRows);
        strip = fitting > busy ? fitting : busy;
        strip = strip < p.num_queries ? strip : up(p.num_queries, kBlockRows);
        const int64_t tasks = strip / kTaskRows;
        workers = p.threads < tasks ? p.threads : tasks;
        packed = take(panels * depth_row * 64);
        rows = take(p.d_queries ? panels * 32 * width : 0);
        log_q = take(panels * 64);
        ids = take(panels * 64 * 2);
        queries = take(strip * depth_row);
        logits = take(workers * panels * kTaskRows * 64);
        by_query = take(p.d_queries ? panels * strip * 32 : 0);
        by_item = take(p.d_items ? panels * strip * 32 : 0);
        weighted = take(p.d_items ? strip / 2 * width : 0);
        d_query = take(p.d_queries ? strip * width : 0);
        at_target = take(p.num_queries);
        table = take(p.d_items ? p.num_items * width : 0);
        d_rows = take(p.d_items && p.negatives ? panels * 64 * width : 0);
    }
};

}  // namespace
}  // namespace pylum::sampled_softmax
