// Rows of several tables for each token, concatenated or summed, plus a position row, cast.
#pragma once

#include <cstdint>

#include "common/execution.h"
#include "common/tensor.h"

namespace pylum::embedding_sequence {

struct Table {
    const void* data;  // [rows, dim], rows stride apart
    DType dtype;       // float32, bfloat16 or, on CUDA, float16
    int64_t rows, dim, stride;
    const int64_t* indices;  // [total], indices_stride apart
    int64_t indices_stride;
    int64_t column;  // where the row starts in the output
};

// Tables that one CUDA kernel takes with its arguments: so many can be summed there.
constexpr int64_t kMostTables = 56;

// out[n, column_t : column_t + dim_t] += tables[t][indices_t[n]], accumulated in float32 from zero
// in the order of the tables, positions last, and rounded once.
struct Params {
    const Table* tables;
    int64_t num_tables;
    bool sum;  // every table has column 0 and dim = width; else they stand side by side
    const Table* position;  // dim = width, or null
    void* out;              // [total, width], contiguous
    DType out_dtype;        // float32, bfloat16 or, on CUDA, float16
    int64_t total, width;
    int threads;
    int32_t* errors;
    bool* good;  // cleared where a CPU kernel meets an index out of range: out is then incomplete
};

PYLUM_CPU_KERNEL(void forward(const Params&))
void launch_forward(const Params& p, CUstream_st* stream);

}  // namespace pylum::embedding_sequence
