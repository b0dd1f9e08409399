// Dot products of all pairs of a row's vectors: the strict lower triangle, row by row.
#pragma once

#include <cstdint>

#include "common/execution.h"
#include "common/tensor.h"

namespace pylum::dot_interaction {

constexpr int64_t kMaxDim = 512;  // what a thread's stack holds transposed

struct Params {
    const void* vectors;  // [batch, count, dim]
    const void* dout;     // [batch, count (count - 1) / 2], backward only
    void* out;            // [batch, count (count - 1) / 2], forward only
    void* dvectors;       // [batch, count, dim], backward only
    DType dtype;          // of all: float32, bfloat16 or, on CUDA, float16; sums are float32
    int64_t batch, count, dim;
    int threads;
};

PYLUM_CPU_KERNEL(void forward(const Params&); void backward(const Params&))
void launch_forward(const Params& p, CUstream_st* stream);
void launch_backward(const Params& p, CUstream_st* stream);

}  // namespace pylum::dot_interaction
