// out = silu(gate) * up, with gate and up side by side in one projection.
#pragma once

#include <cstdint>

#include "common/execution.h"
#include "common/tensor.h"

namespace pylum::swiglu {

struct Params {
    const void* gate_up;  // [rows, 2 * width]
    const void* dout;     // [rows, width], backward only
    void* out;            // [rows, width], forward only
    void* dgate_up;       // [rows, 2 * width], backward only
    DType dtype;          // of all: float32, bfloat16 or, on CUDA, float16; arithmetic is float32
    int64_t rows, width;
    int threads;
};

PYLUM_CPU_KERNEL(void forward(const Params&); void backward(const Params&))
void launch_forward(const Params& p, CUstream_st* stream);
void launch_backward(const Params& p, CUstream_st* stream);

}  // namespace pylum::swiglu
