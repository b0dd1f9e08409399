// The workspace of shared candidates in products of bfloat16 pairs or tiles (cpu/pairs.cpp).
#pragma once

#include "sampled_softmax/sampled_softmax.h"

namespace pylum::sampled_softmax {
namespace {

// Queries of one task: 16 register tiles.
constexpr int64_t kPairRows = 96;
// Panels of candidates whose exponentials share a shift for each query; a task keeps the logits of
// so many.
constexpr int64_t kGroupPanels = 8;

// Where each part begins, in floats. The size is O((items + queries) * dim) plus one strip of
// queries' exponentials; the results do not depend on how long the strip is.
struct PairLayout {
    int64_t panels = 0;     // ceil(candidates / 64)
    int64_t groups = 0;     // of panels
    int64_t width = 0;      // dim rounded up to 16
    int64_t depth = 0;      // pairs of a row, ceil(dim / 2)
    int64_t depth_row = 0;  // that rounded up to 16
    int64_t strip = 0;      // queries of one strip, a multiple of kPairRows
    int64_t workers = 0;    // at the same time
    int64_t packed = 0;     // [panels, depth_row, 64] pairs of depth: candidates transposed
    int64_t rows = 0;       // [panels * 32, width] pairs of candidates
    int64_t log_q = 0;      // [panels * 64], in powers of two
    int64_t ids = 0;        // [2, panels * 64] int32: low and high halves of the candidates' ids
    int64_t queries = 0;    // [workers, kPairRows, depth_row] pairs of depth
    int64_t logits = 0;     // [workers, kGroupPanels, kPairRows, 64], in powers of two
    int64_t by_query = 0;   // [workers, kGroupPanels, kPairRows, 32] pairs of candidates:
                            //   exponentials below the group's shift
    int64_t d_query = 0;    // [workers, kPairRows, width]: d_queries before their factor
    int64_t by_item = 0;    // [panels, strip / 2, 64] pairs of queries: as by_query
    int64_t shifts = 0;     // [groups, strip]
    int64_t last = 0;       // [strip] shifts of the last group
    int64_t factors = 0;    // [strip] of the exponentials below the last shift in a gradient
    int64_t weighted = 0;   // [workers, strip / 2, width] pairs of queries times their factor
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
        groups = (panels + kGroupPanels - 1) / kGroupPanels;
        const int64_t fitting = (int64_t{1} << 22) / (panels * 64 + 1) / kPairRows * kPairRows;
        const int64_t busy = p.threads * kPairRows;
        strip = fitting > busy ? fitting : busy;
        strip = strip < p.num_queries ? strip : up(p.num_queries, kPairRows);
        workers = p.threads;
        packed = take(panels * depth_row * 64);
        rows = take(p.d_queries ? panels * 32 * width : 0);
        log_q = take(panels * 64);
        ids = take(panels * 64 * 2);
        queries = take(workers * kPairRows * depth_row);
        logits = take(workers * kGroupPanels * kPairRows * 64);
        by_query = take(p.d_queries ? workers * kGroupPanels * kPairRows * 32 : 0);
        d_query = take(p.d_queries ? workers * kPairRows * width : 0);
        by_item = take(p.d_items ? panels * strip * 32 : 0);
        shifts = take(p.d_items ? groups * strip : 0);
        last = take(strip);
        factors = take(strip);
        weighted = take(p.d_items ? workers * strip / 2 * width : 0);
        at_target = take(p.num_queries);
        table = take(p.d_items ? p.num_items * width : 0);
        d_rows = take(p.d_items && p.negatives ? panels * 64 * width : 0);
    }
};

// Floats that a CPU kernel needs.
inline int64_t host_workspace(const Params& p) {
    return isa() >= Isa::kAvx512Bf16 && PairLayout::suits(p) ? PairLayout(p).total
                                                             : Layout(p).total;
}

}  // namespace
}  // namespace pylum::sampled_softmax
