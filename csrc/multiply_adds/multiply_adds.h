// The processor's own rate of multiply-adds, from registers: what benchmarks call the ceiling.
#pragma once

#include <cstdint>

#include "common/cpu_features.h"
#include "common/tensor.h"

namespace pylum::multiply_adds {

// More than the latency of a multiply-add times what begins at once, and fewer than the registers.
constexpr int kChains = 12;

// Each lane of each chain: sum = sum * factor + addend, steps times; with bfloat16 on AVX512-BF16
// sum += factor * addend twice, the product of a pair.
struct Params {
    DType dtype;  // float32 or bfloat16
    float factor, addend;
    int64_t steps;
    float sum;      // of the first lane of the first chain
    int64_t flops;  // of all lanes and chains
};

PYLUM_CPU_KERNEL_BF16(void forward(Params&))

}  // namespace pylum::multiply_adds
