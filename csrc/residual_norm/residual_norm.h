// sum = residual + dropout(branch); normed = sum / rms(sum) * weight.
#pragma once

#include <cstdint>

#include "common/execution.h"
#include "common/tensor.h"

namespace pylum::residual_norm {

// An element of the branch is dropped where hash(seed, row, column) < threshold, a 32-bit hash, and
// multiplied by keep elsewhere; so the backward pass needs no stored mask.
struct Dropout {
    uint64_t seed;
    uint32_t threshold;  // probability * 2^32
    float keep;          // 1 / (1 - probability)
};

struct Forward {
    const void* residual;  // [rows, width] or null for zeros
    const void* branch;    // [rows, width]
    const void* weight;    // [width]
    void* sum;             // [rows, width]
    void* normed;          // [rows, width]
    float* scales;         // [rows]: 1 / sqrt(mean(sum^2) + eps)
    DType dtype;           // of all but scales; arithmetic is float32
    int64_t rows, width;
    float eps;
    Dropout dropout;
    int threads;
};

// Rows of one chunk are one task and one row of dweight_parts, summed in order afterwards.
constexpr int64_t kChunk = 256;
constexpr int64_t kCudaChunk = 64;
// A CUDA block holds one row of dweight in shared memory.
constexpr int64_t kMostCudaWidth = 24'576;

struct Backward {
    const void* dsum;      // [rows, width] or null for zeros
    const void* dnormed;   // [rows, width] or null for zeros
    const void* sum;       // [rows, width]
    const void* weight;    // [width]
    const float* scales;   // [rows]
    void* dresidual;       // [rows, width]: the gradient of sum in all
    void* dbranch;         // [rows, width], or null where nothing is dropped: dresidual serves
    float* dweight_parts;  // [ceil(rows / kChunk or kCudaChunk), width]
    float* dweight;        // [width]
    DType dtype;
    int64_t rows, width;
    Dropout dropout;
    int threads;
};

PYLUM_CPU_KERNEL(void forward(const Forward&); void backward(const Backward&))
void launch_forward(const Forward& p, CUstream_st* stream);
void launch_backward(const Backward& p, CUstream_st* stream);

}  // namespace pylum::residual_norm
