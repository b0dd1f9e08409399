// Sums or means of the rows of each bag, for many tables in one call.
#pragma once

#include <cstdint>

#include "common/cpu_features.h"
#include "common/tensor.h"

namespace pylum::embedding_bag {

struct Table {
    const void* data;  // [rows, dim], rows stride apart
    DType dtype;       // float32 or bfloat16
    int64_t rows, dim, stride;
    const int64_t* indices;  // [offsets[batch]], indices_stride apart
    const int64_t* offsets;  // [batch + 1], non-decreasing
    int64_t indices_stride;
    int64_t column;  // where the table's dim columns start in the output
};

// out[b, column_t : column_t + dim_t] = the sum, or the mean, of tables[t][i] for the indices i of
// bag b in their order, accumulated in float32 and rounded once. An empty bag gives zeros.
struct Params {
    const Table* tables;
    int64_t num_tables, batch, width;
    bool mean;
    void* out;        // [batch, width], contiguous
    DType out_dtype;  // float32 or bfloat16
    int threads;
};

// False where an index is out of range: out is then incomplete.
PYLUM_CPU_KERNEL(bool forward(const Params&))

}  // namespace pylum::embedding_bag
