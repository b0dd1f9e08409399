// Softmax cross-entropy of each query's target item against candidate items, with its gradients.
#pragma once

#include <cstdint>

#include "common/execution.h"
#include "common/tensor.h"

namespace pylum::sampled_softmax {

// logit(n, j) = inverse_temperature * <queries[n], items[j]> - log_q[j]
// losses[n] = log(sum over {target} and the candidates not masked of e^logit) - logit(n, target)
// A candidate is masked where it is the target's row or has the target's id, so the target counts
// once. d_queries and d_items are gradients of sum over n of scales[n] * losses[n]; a row with
// scale 0 adds nothing to them, even where it is NaN.
struct Params {
    const void* queries;  // [num_queries, dim], rows queries_stride apart
    const void* items;    // [num_items, dim], rows items_stride apart
    DType dtype;  // of queries, items and their gradients; sums are float32; float16 on CUDA
    int64_t num_queries, num_items, dim;
    int64_t queries_stride, items_stride;
    const int64_t* targets;    // [num_queries] rows of items
    const int64_t* negatives;  // [num_negatives] or [num_queries, num_negatives] rows of items,
    int64_t num_negatives;     //   or null: every row of items is a candidate
    bool per_query;            // negatives differ by query
    const int64_t* item_ids;   // [num_items], or null: the row is the id
    const float* log_q;        // [num_items], or null: 0
    float inverse_temperature;
    const float* scales;  // [num_queries]; read only where a gradient is wanted
    float* losses;        // [num_queries]
    void* d_queries;      // [num_queries, dim] contiguous, or null
    void* d_items;        // [num_items, dim] contiguous, or null
    float* workspace;     // [Layout(params).total], on CUDA of cuda/space.h
    int threads;
    int32_t* errors;

    int64_t candidates() const { return negatives ? num_negatives : num_items; }
};

namespace {

constexpr int64_t kTaskRows = 48;   // queries of one task: 8 register tiles
constexpr int64_t kBlockRows = 96;  // d_items is a sum over blocks of queries of this size

// Where each part of the workspace begins, in floats. Its size is O((items + queries) * dim) plus
// one strip of queries' exponentials, and the results do not depend on how long the strip is.
struct Layout {
    int64_t panels = 0;     // ceil(candidates / 64)
    int64_t width = 0;      // dim rounded up to 16
    int64_t strip = 0;      // queries of one strip, a multiple of kBlockRows
    int64_t packed = 0;     // [panels, dim, 64]: candidates transposed
    int64_t rows = 0;       // [panels * 64, width]: candidates
    int64_t log_q = 0;      // [panels * 64]
    int64_t ids = 0;        // [2, panels * 64] int32: low and high halves of the candidates' ids
    int64_t exponents = 0;  // [panels, strip, 64] or [num_queries, num_negatives]: logits, then
                            //   exponentials
    int64_t scaled = 0;     // [strip, width]: queries / temperature
    int64_t weighted = 0;   // [num_queries, width]: queries * their gradient factor
    int64_t d_rows = 0;     // [panels * 64, width]: gradients of shared negatives
    int64_t table = 0;      // [num_items, width]: d_items, unless it is accumulated in place
    int64_t others = 0;     // [num_queries]: sum of the exponentials without the target's
    int64_t d_query = 0;    // [strip or num_queries, width]: d_queries before its factor
    int64_t total = 0;

    static bool in_place(const Params& p) { return p.dtype == DType::kFloat32 && p.dim % 16 == 0; }

    explicit Layout(const Params& p) {
        const auto take = [&](int64_t floats) {
            const int64_t at = total;
            total += (floats + 15) / 16 * 16;
            return at;
        };
        const auto up = [](int64_t n, int64_t to) { return (n + to - 1) / to * to; };
        width = up(p.dim, 16);
        others = take(p.num_queries);
        weighted = take(p.num_queries * width);
        table = take(p.d_items && !in_place(p) ? p.num_items * width : 0);
        if (p.per_query) {
            exponents = take(p.num_queries * p.num_negatives);
            d_query = take(p.d_queries ? p.num_queries * width : 0);
            return;
        }
        panels = up(p.candidates(), 64) / 64;
        const int64_t fitting = (int64_t{1} << 20) / (panels * 64 + 1) / kBlockRows * kBlockRows;
        const int64_t busy = up(p.threads * kTaskRows, kBlockRows);
        strip = fitting > busy ? fitting : busy;
        strip = strip < p.num_queries ? strip : up(p.num_queries, kBlockRows);
        packed = take(panels * 64 * p.dim);
        rows = take(p.d_queries ? panels * 64 * width : 0);
        log_q = take(panels * 64);
        ids = take(panels * 64 * 2);
        exponents = take(panels * strip * 64);
        scaled = take(strip * width);
        d_rows = take(p.d_items && p.negatives ? panels * 64 * width : 0);
        d_query = take(p.d_queries ? strip * width : 0);
    }
};

}  // namespace

PYLUM_CPU_KERNEL_AMX(void forward_shared(const Params&))
PYLUM_CPU_KERNEL(void forward_per_query(const Params&))

void launch_forward_shared(const Params& p, CUstream_st* stream);
void launch_forward_per_query(const Params& p, CUstream_st* stream);

// scales[n] = d loss / d losses[n] of the reduction.
struct Scales {
    const float* weights;  // [count], or null: 1
    float* scales;         // [count]
    int64_t count;
    bool mean;
    int32_t* errors;
};
void launch_scales(const Scales& s, CUstream_st* stream);

// loss [] = sum of scales[n] * losses[n], in a fixed order; or loss [count] = scales[n] *
// losses[n].
struct Reduction {
    const float* losses;
    const float* scales;
    float* loss;
    int64_t count;
    bool sums;
};
void launch_reduce(const Reduction& r, CUstream_st* stream);

}  // namespace pylum::sampled_softmax
