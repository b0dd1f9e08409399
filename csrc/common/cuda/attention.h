// Attention on CUDA: what the kernels read, and their launchers.
#pragma once

#include "common/attention_inputs.h"
#include "common/execution.h"

namespace pylum::cuda {

// A ragged batch as it stands on the device, and what prepare_batch() makes of it.
struct DeviceBatch {
    const int64_t* offsets;        // [batch + 1] rows of q
    const int64_t* lengths;        // [batch] tokens in the pages; null without pages
    const int64_t* num_context;    // [batch] or null: none
    const int64_t* num_targets;    // [batch] or null: none
    const int64_t* group_offsets;  // [groups + 1] or null: every target alone
    const int64_t* visible;        // [visible_targets] history tokens or null: all
    int64_t batch, rows, groups;
    int64_t key_targets;      // rows of k and v where they hold targets only; -1 where all rows
    int64_t visible_targets;  // entries of visible
    int64_t table_width;      // pages a row of the table names
    int64_t keys;             // timestamps of a bias, one per history token and target; else -1
    Sequence* sequences;      // [batch]
    int64_t* history_tiles;   // [batch + 1] cumulative tiles of history rows
    int64_t* target_tiles;    // [batch + 1] of target rows
    int64_t* broken;          // [1] the description contradicts itself: every row becomes NaN
};

// What a gap in a cell adds, on both sides of the one threshold that the cell may hold.
struct BiasCell {
    uint64_t last;  // the last gap before the threshold
    float before, from;
};

// What launch_prepare_bias() makes of a bias's thresholds and times; unused without times.
struct DeviceBias {
    GapCell* buckets;  // [kGapCells]
    BiasCell* cells;   // [kGapCells]
};

struct AttentionParams {
    AttentionInputs in;  // sections and the tensors of in.batch are unused
    DeviceBatch batch;
    DeviceBias bias;
    int64_t num_pages;
    float* parts;     // [chunks, targets, heads, value_dim + 2] sums of the targets' chunks
    int64_t targets;  // at most; from shapes
    int64_t chunks;   // 1: one block takes a tile through all chunks; else each has its own
    int32_t* errors;
};

// Largest magnitudes as the bits of floats, whose order is that of integers; NaN is above all.
struct BiasRange {
    uint32_t dout, v, level;
    uint32_t keys;    // most of one sequence
    uint32_t broken;  // a gradient is not finite: all become NaN
    uint32_t unused;
};

// Gradients of sum(out * dout); `out` and lse of the inputs are read.
struct AttentionGradients {
    AttentionParams inputs;  // parts: [targets, heads, head_dim] dq of the own groups
    const void* dout;        // [rows, heads, value_dim]
    int64_t dout_row, dout_head;
    void* dq;      // [rows, heads, head_dim]
    void* dk;      // [rows, kv_heads, head_dim]
    void* dv;      // [rows, kv_heads, value_dim]
    float* delta;  // [rows, heads] sums of out * dout; softmax only
    // Of the bias's tables, positions before times: sums in fixed point, whose unit
    // launch_bias_range() finds, and the results. Null without a bias.
    int64_t* bias_sums;  // [bias_entries]
    BiasRange* bias_range;
    float* dtables;  // [bias_entries]
};

// Rows of a tile.
int forward_tile_rows(DType dtype, int64_t dim);
int backward_tile_rows(DType dtype, int64_t dim);
// Upper bounds from shapes alone.
int64_t history_tiles_bound(const DeviceBatch& batch, int rows);
int64_t target_tiles_bound(const DeviceBatch& batch, int rows);

void launch_prepare_batch(const AttentionParams& p, int rows, CUstream_st* stream);
void launch_prepare_bias(const AttentionParams& p, CUstream_st* stream);
// Before and after the passes that add to bias_sums.
void launch_bias_range(const AttentionGradients& p, CUstream_st* stream);
void launch_bias_gradients(const AttentionGradients& p, CUstream_st* stream);
void launch_attention_forward(const AttentionParams& p, CUstream_st* stream);
// Of one dtype: each is a file of its own, so that they compile side by side.
void launch_forward_float32(const AttentionParams& p, CUstream_st* stream);
void launch_forward_bfloat16(const AttentionParams& p, CUstream_st* stream);
void launch_forward_float16(const AttentionParams& p, CUstream_st* stream);

void launch_attention_backward(const AttentionGradients& p, CUstream_st* stream);
void launch_backward_float32(const AttentionGradients& p, CUstream_st* stream);
void launch_backward_bfloat16(const AttentionGradients& p, CUstream_st* stream);
void launch_backward_float16(const AttentionGradients& p, CUstream_st* stream);

}  // namespace pylum::cuda
