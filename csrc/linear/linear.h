// y = x weight^T and its gradients, for the many-rows, few-columns products of a small model.
#pragma once

#include <cstdint>

#include "common/cpu_features.h"
#include "common/tensor.h"

namespace pylum::linear {

// The weight is packed in panels of this many columns.
constexpr int64_t kColumns = 64;
// Columns of the gradient's workspace are padded with zeros to a multiple of this.
constexpr int64_t kPad = 16;
// Rows of one task: of y, and of the partial sums of dweight; rows read at a time for the latter.
constexpr int64_t kChunk = 96;
constexpr int64_t kGradientChunk = 2048;
constexpr int64_t kStrip = 128;

// y[t, n] = sum over k of x[t, k] * w[k, n]: one chain of fused multiply-adds in the order of k,
// whatever the number of rows.
struct Product {
    const float* x;       // [total, depth]
    const float* weight;  // [width, depth], or [depth, width] where transposed
    bool transposed;
    float* packed;  // [width / kColumns rounded up, depth, kColumns], workspace
    float* y;       // [total, width]
    int64_t total, depth, width;
    int threads;
};

// dweight[n, k] = sum over t of dy[t, n] * x[t, k], in chunks of kGradientChunk rows summed in
// order.
struct Gradient {
    const float* dy;   // [total, width]
    const float* x;    // [total, depth]
    float* workspace;  // [chunks, width + kStrip, depth padded to kPad]
    float* dweight;    // [width, depth]
    int64_t total, depth, width;
    int threads;
};

PYLUM_CPU_KERNEL(void product(const Product&); void gradient(const Gradient&))

}  // namespace pylum::linear
