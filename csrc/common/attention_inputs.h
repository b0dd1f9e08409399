// What the forward pass of an attention op reads and writes.
#pragma once

#include "common/attention_bias.h"
#include "common/sequence.h"
#include "common/tensor.h"

namespace pylum {

// Element [row, head, d] of q, k, v stands at row * <x>_row + head * <x>_head + d.
struct AttentionInputs {
    DType dtype;    // of q, k, v, pages and out: float32 or bfloat16; sums are float32
    const void* q;  // [rows, heads, head_dim]
    const void* k;  // [rows, kv_heads, head_dim]; with pages: [all targets, kv_heads, head_dim]
    const void* v;  // like k, value_dim wide
    int64_t q_row, q_head, k_row, k_head, v_row, v_head;
    int64_t heads, kv_heads, head_dim, value_dim;
    // Pages of every history token, or null: on the CPU in the order of common/cpu/key_blocks.h.
    const void* k_pages;   // [pages, kv_heads, 64 * head_dim]
    const void* v_pages;   // [pages, kv_heads, 64 * value_dim]
    const int64_t* table;  // [batch, table_row] pages of each sequence
    int64_t table_row;
    Batch batch;
    const Section* sections;         // of at most kTaskRows rows, one sequence after the other
    const int64_t* section_offsets;  // [batch + 1], costly sequences first
    bool silu;  // weight = silu(scale q.k) * score_scale, else softmax(scale q.k)
    float scale;
    const float* score_scales;  // [rows], or null for the same one everywhere
    float score_scale;
    RelativeBias bias;  // silu only
    void* out;          // [rows, heads, value_dim]
    float* lse;         // [rows, heads] natural logarithm of the softmax sum, or null
    int threads;
};

}  // namespace pylum
