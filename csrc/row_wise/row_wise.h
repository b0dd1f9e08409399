// Gradients of a table merged per row over all uses of a step, then one update per touched row.
#pragma once

#include <cstdint>

#include "common/execution.h"
#include "common/tensor.h"

namespace pylum::row_wise {

// Lookups of one row that are summed in one go; a row with more is summed in pieces, left to right.
constexpr int64_t kPiece = 512;

// Row indices[i] of the table was used, and the loss has gradient grad[i] there; or, with offsets,
// grad[b] for every index of bag b, divided by the bag's size where the bag took the mean.
struct Use {
    const int64_t* indices;  // [lookups], indices_stride apart
    const int64_t* offsets;  // [grad_rows + 1] non-decreasing from 0 to lookups, or null
    const void* grad;        // [grad_rows, dim], rows grad_stride apart
    DType grad_dtype;        // float32, bfloat16 or, on CUDA, float16
    bool mean;
    int64_t lookups, grad_rows, indices_stride, grad_stride;
};

enum class Rule {
    kSum,      // table row = g; rows without a use keep what they hold
    kAdagrad,  // state += mean(g^2); row -= lr * g / (sqrt(state) + eps)
    // moment = beta1 * moment + (1 - beta1) * g; state = beta2 * state + (1 - beta2) * mean(g^2);
    // row = row * (1 - lr * weight_decay)
    //       - lr / correction1 * moment / (sqrt(state) / sqrt(correction2) + eps)
    kAdamW,
};

// g of a row is the sum over its lookups in the order of the uses, in float32: it depends on
// nothing but the row's own lookups. Rows with no use are not touched.
struct Params {
    const Use* uses;
    int64_t num_uses;
    Rule rule;
    void* table;  // [rows, dim], rows table_stride apart
    DType dtype;  // float32, bfloat16 or, on CUDA, float16
    int64_t rows, dim, table_stride;
    float* state;   // [rows], contiguous
    float* moment;  // [rows, dim], rows moment_stride apart
    int64_t moment_stride;
    float lr, eps, beta1, beta2, weight_decay;
    float correction1, sqrt_correction2;  // 1 - beta1^step, sqrt(1 - beta2^step)
    uint64_t* words;                      // workspace [words_needed(lookups of all uses)]
    float* partials;                      // workspace [pieces_bound(lookups), dim]
    int threads;
    int32_t* errors;
    bool* good;  // cleared where a CPU kernel meets an index out of range: nothing is then written
};

// Pieces of the rows with more than kPiece lookups: at most two for each kPiece lookups.
constexpr int64_t pieces_bound(int64_t lookups) { return 2 * (lookups / kPiece); }
// Sort keys worth a thread, and the bits of a key that a pass of the sort looks at.
constexpr int64_t kSortChunk = int64_t{1} << 16;
constexpr int kMostDigit = 10;
// Parts of a pass that run side by side.
constexpr int64_t sort_chunks_bound(int64_t lookups) {
    const int64_t chunks = lookups / kSortChunk;
    return chunks < 1 ? 1 : chunks > 16 ? 16 : chunks;
}
// Two buffers of sort keys with an end mark, begin and end of each piece, and of each part of a
// pass where its keys of a digit go.
constexpr int64_t words_needed(int64_t lookups) {
    return 2 * (lookups + 1) + 2 * pieces_bound(lookups) +
           (sort_chunks_bound(lookups) << kMostDigit);
}

// The same on CUDA, where a bad index is left out of the update of its row.
constexpr int64_t kMostCudaUses = 32;  // they go with a kernel's arguments
// Two slots for the pieces that begin in each kPiece lookups, one in what is left.
constexpr int64_t cuda_pieces_bound(int64_t lookups) { return 2 * (lookups / kPiece) + 1; }

PYLUM_CPU_KERNEL(void forward(const Params&))
void launch_forward(const Params& p, CUstream_st* stream);

}  // namespace pylum::row_wise
