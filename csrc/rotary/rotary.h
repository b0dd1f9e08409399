// One fused projection divided into rotated q, rotated k and plain v.
#pragma once

#include <cstdint>

#include "common/execution.h"
#include "common/tensor.h"

namespace pylum::rotary {

// Elements d and d + head_dim / 2 of a head of q or k turn together by the angle of the row's
// position. The backward pass runs the other way: the same loop with inverse set.
struct Params {
    void* fused;               // [total, (heads + 2 * kv_heads) * head_dim]
    void* q;                   // [total, heads, head_dim]
    void* k;                   // [total, kv_heads, head_dim]
    void* v;                   // [total, kv_heads, head_dim]
    DType dtype;               // of these; arithmetic is float32
    const int64_t* positions;  // [total], rows of cos and sin
    const float* cos;          // [angles, head_dim / 2]
    const float* sin;          // [angles, head_dim / 2]
    int64_t total, heads, kv_heads, head_dim, angles;
    bool inverse;  // read dq, dk, dv and write fused; q, k and v may then be null for zeros
    int threads;
    int32_t* errors;
};

PYLUM_CPU_KERNEL(void run(const Params&))
void launch_run(const Params& p, CUstream_st* stream);

}  // namespace pylum::rotary
