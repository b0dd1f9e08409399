// Attention over a packed batch of sequences, forward and backward.
#pragma once

#include "common/attention_inputs.h"
#include "common/cpu_features.h"

namespace pylum::attention {

// Gradients of sum(out * dout), the softmax recomputed from lse.
struct BackwardParams {
    AttentionInputs in;  // as in the forward pass, but `out` is read; lse is read for softmax
    const void* dout;    // [rows, heads, value_dim], element [row, head, d] at
    int64_t dout_row, dout_head;  // row * dout_row + head * dout_head + d
    float* dk;                    // [rows, kv_heads, head_dim rounded up to 16]; zero on entry
    float* dv;                    // [rows, kv_heads, value_dim rounded up to 16]; zero on entry
    void* dq;                     // [rows, heads, head_dim]
    const int64_t* order;         // [batch] sequences, costly ones first
    // [kBiasCopies, 2 * length - 1 + buckets + 1] gradients of the bias's tables, zero on entry; or
    // null.
    double* dbias;
};

PYLUM_CPU_KERNEL_BF16(void forward(const AttentionInputs&))
PYLUM_CPU_KERNEL(void backward(const BackwardParams&))

}  // namespace pylum::attention
