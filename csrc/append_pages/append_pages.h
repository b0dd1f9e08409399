// Keys and values of new tokens into the pages of their sequences, the keys rotated on the way.
#pragma once

#include <cstdint>

#include "common/execution.h"
#include "common/tensor.h"

namespace pylum::append_pages {

struct Params {
    DType dtype;    // of k, v and the pages: float32, bfloat16 or, on CUDA, float16
    const void* k;  // [rows, kv_heads, head_dim], element [row, head, d] at
    const void* v;  // [rows, kv_heads, value_dim]     row * <x>_row + head * <x>_head + d
    int64_t k_row, k_head, v_row, v_head;
    int64_t kv_heads, head_dim, value_dim;
    const int64_t* offsets;    // [batch + 1] rows of each sequence
    const int64_t* starts;     // [batch] position of each sequence's first row in its history
    const int64_t* table;      // [batch, table_row] pages of each sequence
    const int64_t* positions;  // [rows] rows of cos and sin; null: a token's place in its history
    const float* cos;          // [angles, head_dim / 2] or null: no rotation
    const float* sin;
    int64_t rows, batch, table_row, cos_row, sin_row;
    int64_t num_pages, table_width, angles;  // what the host cannot check on CUDA
    void* k_pages;  // [pages, kv_heads, 64 * head_dim] in the order of common/cpu/key_blocks.h;
    void* v_pages;  // [pages, kv_heads, 64 * value_dim]   on CUDA [64, dim]
    int threads;
    int32_t* errors;
};

PYLUM_CPU_KERNEL(void forward(const Params&))
void launch_forward(const Params& p, CUstream_st* stream);

}  // namespace pylum::append_pages
