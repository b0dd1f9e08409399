// The k best items of each query by inner product, masked while selecting.
#pragma once

#include <cstdint>

#include "common/cpu_features.h"
#include "common/tensor.h"

namespace pylum::topk {

// Order: higher score first, equal scores by lower item row; a NaN score is never selected.
// Slots past the last selectable item hold row -1 and score -infinity.
struct Params {
    const void* queries;  // [num_queries, dim], rows queries_stride apart
    const void* items;    // [num_items, dim], rows items_stride apart
    DType dtype;          // of queries and items: float32 or bfloat16; sums are float32
    int64_t num_queries, num_items, dim, k;
    int64_t queries_stride, items_stride;
    const int64_t* exclude;             // rows each query may not return, or null
    const int64_t* exclude_offsets;     // [num_queries + 1]
    const int64_t* candidates;          // the only rows each query may return, or null for all
    const int64_t* candidates_offsets;  // [num_queries + 1]
    float* scores;                      // [num_queries, k]
    int64_t* indices;                   // [num_queries, k]
    int threads;
};

PYLUM_CPU_KERNEL(void forward(const Params&))

}  // namespace pylum::topk
