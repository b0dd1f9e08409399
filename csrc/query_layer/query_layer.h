// One transformer layer for rows that are all targets: few rows, so that the weights, read once,
// are what it costs.
#pragma once

#include <cstdint>

#include "common/cpu_features.h"
#include "common/tensor.h"

namespace pylum::query_layer {

// All but floats and the angles: dtype, contiguous. Sums are float32.
struct Params {
    DType dtype;                 // float32 or bfloat16
    const void* x;               // [rows, width] residual stream
    const int64_t* positions;    // [rows] rows of cos and sin
    const float* cos;            // [angles, head_dim / 2]
    const float* sin;            // [angles, head_dim / 2]
    const void* attention_norm;  // [width]
    const void* qkv;             // [(heads + 2 kv_heads) head_dim, width]
    const void* out;             // [width, heads head_dim]
    const void* ffn_norm;        // [width]
    const void* gate_up;         // [2 ffn, width]
    const void* down;            // [width, ffn]
    float* floats;               // [rows, max(width, qkv's rows, 2 ffn)] workspace
    void* h;                     // [rows, max(width, ffn)] workspace
    void* fused;                 // [rows, (heads + 2 kv_heads) head_dim] q, k, v, rotated
    const void* attended;        // [rows, heads head_dim]
    void* y;                     // [rows, width] residual stream after the layer
    int64_t rows, width, heads, kv_heads, head_dim, ffn;
    float eps;
    int threads;
};

// Attention stands between: project() gives fused, complete() reads attended.
PYLUM_CPU_KERNEL_BF16(void project(const Params&); void complete(const Params&))

}  // namespace pylum::query_layer
