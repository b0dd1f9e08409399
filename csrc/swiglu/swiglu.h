// out = silu(gate) * up, with gate and up side by side in one projection.
#pragma once

#include <cstdint>

#include "common/cpu_features.h"
#include "common/tensor.h"

namespace pylum::swiglu {

struct Params {
    const void* gate_up;  // [rows, 2 * width]
    const void* dout;     // [rows, width], backward only
    void* out;            // [rows, width], forward only
    void* dgate_up;       // [rows, 2 * width], backward only
    DType dtype;          // of all: float32 or bfloat16; arithmetic is float32
    int64_t rows, width;
    int threads;
};

PYLUM_CPU_KERNEL(void forward(const Params&); void backward(const Params&))

}  // namespace pylum::swiglu
