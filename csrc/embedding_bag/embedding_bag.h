// Sums or means of the rows of each bag, for many tables in one call.
#pragma once

#include <cstdint>

#include "common/execution.h"
#include "common/tensor.h"

namespace pylum::embedding_bag {

struct Table {
    const void* data;  // [rows, dim], rows stride apart
    DType dtype;       // float32, bfloat16 or, on CUDA, float16
    int64_t rows, dim, stride;
    const int64_t* indices;  // [lookups], indices_stride apart
    const int64_t* offsets;  // [batch + 1], non-decreasing from 0 to lookups
    int64_t lookups;
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
    DType out_dtype;  // float32, bfloat16 or, on CUDA, float16
    int threads;
    int32_t* errors;
    bool* good;  // cleared where a CPU kernel meets an index out of range: out is then incomplete
};

PYLUM_CPU_KERNEL(void forward(const Params&))
void launch_forward(const Params& p, CUstream_st* stream);

}  // namespace pylum::embedding_bag
