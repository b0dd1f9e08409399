// The k best items of each query by inner product, masked while selecting.
#pragma once

#include <cstdint>

#include "common/execution.h"
#include "common/tensor.h"

namespace pylum::topk {

// Item rows, strictly ascending.
struct Rows {
    const int64_t* at;
    int64_t count;
};

// Order: higher score first, equal scores by lower item row; a NaN score is never selected.
// Slots past the last selectable item hold row -1 and score -infinity.
// A score is one chain of float32 multiply-adds over dim, or over pairs of bfloat16, whatever else
// is asked in the call.
struct Params {
    const void* queries;  // [num_queries, dim], rows queries_stride apart
    const void* items;    // [num_items, dim], rows items_stride apart
    DType dtype;          // of queries and items: float32, bfloat16 or, on CUDA, float16
    int64_t num_queries, num_items, dim, k;
    int64_t queries_stride, items_stride;
    const Rows* exclude;     // [num_queries]: rows each query may not return, or null
    const Rows* candidates;  // [num_queries]: the only rows each may return, or null for all
    float* scores;           // [num_queries, k]
    int64_t* indices;        // [num_queries, k]
    char* workspace;         // [Layout(params).total] bytes, 64-byte aligned
    int threads;
    bool byte_products;  // the CPU has them (AVX512-VNNI); no result depends on it
};

namespace {

// Keys a selection of k holds before it is cut back to k.
inline int64_t capacity_for(int64_t k) { return k + (k > 64 ? k : 64); }

constexpr int64_t kSelectionBytes = 64;
// Queries that a tile reads; those past the last are of no meaning.
constexpr int64_t kQueryTile = 16;

constexpr int64_t kMostChunk = 384;  // queries selected at once
constexpr int64_t kLeastJudged = 48;
constexpr int64_t kMostJudgedDim = 2048;  // products of bytes stay far inside 32 bits

// Where each part of the workspace begins, in bytes. Every worker selects for itself, so selection
// needs no lock; then the workers' selections are merged.
struct Layout {
    int64_t width = 0;        // dim rounded up to 16
    int64_t workers = 0;      // at most threads
    int64_t chunk = 0;        // queries selected at once
    int64_t queries = 0;      // [chunk or workers * 16, width] float32, or pairs of bfloat16
    int64_t panels = 0;       // [workers, width, 64] float32: items transposed
    int64_t selections = 0;   // [workers, chunk] of kSelectionBytes
    int64_t keys = 0;         // [workers, chunk, capacity_for(k)] int64
    int64_t words = 0;        // of 4 bytes of a judged row: dim rounded up to 64, by 4
    int64_t padded = 0;       // chunk rounded up to whole tiles and vectors
    int64_t query_bytes = 0;  // [padded, words] and four numbers a query (cpu/judge.h)
    int64_t item_bytes = 0;   // [workers, words, 64]
    int64_t thresholds = 0;   // [workers, padded] float32
    int64_t total = 0;

    // Fewer queries are scored at once: judging them costs as much as scoring.
    static bool judges(const Params& p) {
        return p.byte_products && !p.candidates && p.num_queries >= kLeastJudged && p.dim > 0 &&
               p.dim <= kMostJudgedDim;
    }

    explicit Layout(const Params& p) {
        const auto take = [&](int64_t bytes) {
            const int64_t at = total;
            total += (bytes + 63) / 64 * 64;
            return at;
        };
        width = (p.dim + 15) / 16 * 16;
        // Below this many multiply-adds a team of threads costs more than it saves.
        const double work = static_cast<double>(p.num_queries) * p.num_items * p.dim;
        workers = p.threads > 1 && (p.candidates || work > 1e6) ? p.threads : 1;
        // The keys of a chunk stay within two megabytes, its queries within a few hundred.
        chunk = (int64_t{1} << 18) / capacity_for(p.k) / 6 * 6;
        chunk = chunk < 6 ? 6 : chunk > kMostChunk ? kMostChunk : chunk;
        chunk = p.candidates ? 1 : chunk < p.num_queries ? chunk : p.num_queries;
        queries = take((p.candidates ? workers : (chunk + kQueryTile - 1) / kQueryTile) *
                       kQueryTile * width * 4);
        panels = take(workers * width * 64 * 4);
        selections = take(workers * chunk * kSelectionBytes);
        keys = take(workers * chunk * capacity_for(p.k) * 8);
        if (judges(p)) {
            words = (p.dim + 63) / 64 * 16;
            padded = (chunk + 47) / 48 * 48;
            query_bytes = take(padded * (words + 4) * 4);
            item_bytes = take(workers * words * 64 * 4);
            thresholds = take(workers * padded * 4);
        }
    }
};

}  // namespace

PYLUM_CPU_KERNEL_AMX(void forward(const Params&))

// Rows of each query as they come: in any order, with repetitions. No rows is a null pointer.
struct Lists {
    const int64_t* rows;
    const int64_t* offsets;  // [num_queries + 1]
    int64_t total;
};

struct DeviceParams {
    Params params;  // its lists, workspace and threads are unused
    Lists exclude, candidates;
    unsigned long long* parts;  // [parts_needed(params)] best keys of each part of the items
    int32_t* errors;
};

void launch_forward(const DeviceParams& d, CUstream_st* stream);

}  // namespace pylum::topk
