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
    void* dq;                     // [rows, heads, head_dim], dk [rows, kv_heads, head_dim] and
    void* dk;                     // dv [rows, kv_heads, value_dim], contiguous
    void* dv;
    const int64_t* order;  // [batch] sequences, costly ones first
    float* workspace;      // [slots, slot_floats], a slot for each task under way
    int64_t slots, slot_floats;
    int64_t* control;  // [slots + control_words()], zero on entry
    // [kBiasCopies, 2 * length - 1 + buckets + 1] gradients of the bias's tables, zero on entry; or
    // null.
    double* dbias;
};

namespace {

// Rows of sums in workspace: whole vectors of every ISA.
inline int64_t padded(int64_t dim) { return (dim + 15) / 16 * 16; }

// A mark of each piece of rows has a cache line of its own.
constexpr int64_t kMarkWords = 8;

// What threads tell each other: a word a task, and with several of them a mark a piece.
inline int64_t control_words(const AttentionInputs& p) {
    int64_t words = p.batch.batch * p.kv_heads;
    for (int64_t i = 0; p.threads > 1 && i < p.batch.batch; ++i) {
        const Sequence& s = p.batch.sequences[i];
        words += (s.history / kStripRows + s.targets / kStripRows + 2) * p.heads * kMarkWords;
    }
    return words;
}

}  // namespace

PYLUM_CPU_KERNEL_AMX(void forward(const AttentionInputs&))
PYLUM_CPU_KERNEL_AMX(void backward(const BackwardParams&))

}  // namespace pylum::attention
