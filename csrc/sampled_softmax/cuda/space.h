// The workspace of a call on CUDA, and how it is cut into blocks: by its shapes alone.
#pragma once

#include "common/cuda/sort.h"
#include "sampled_softmax/sampled_softmax.h"

namespace pylum::sampled_softmax {

constexpr int64_t kMostCudaDim = 256;  // what a warp's registers sum
constexpr int kBlock = 64;  // rows of the other side that a block of threads meets at once
constexpr int kChunk = 32;  // sorted contributions of a warp

inline int64_t blocks_of(int64_t rows, int64_t block) { return (rows + block - 1) / block; }

// Rows of the side that a block of threads owns.
inline int own_rows(DType dtype, int64_t dim) {
    return dtype == DType::kFloat32 && dim > 128 ? 32 : 64;
}

// How the other side is cut, so that there are about 256 blocks of threads.
struct Parts {
    int64_t count, rows;  // rows of a part

    Parts(int64_t own, int tile, int64_t others) {
        const int64_t tiles = blocks_of(own, tile), blocks = blocks_of(others, kBlock);
        count = tiles == 0 ? 1 : tiles < 256 ? 256 / tiles : 1;
        count = count < blocks ? count : blocks > 0 ? blocks : 1;
        rows = blocks_of(blocks, count) * kBlock;
        count = rows > 0 ? blocks_of(blocks * kBlock, rows) : 1;
    }
};

inline Parts parts_of_candidates(const Params& p) {
    return {p.num_queries, own_rows(p.dtype, p.dim), p.candidates()};
}
inline Parts parts_of_queries(const Params& p) {
    return {p.candidates(), own_rows(p.dtype, p.dim), p.num_queries};
}

// Terms of d_items that are rows of lists: every query's target, then the negatives.
inline int64_t contributions(const Params& p) {
    const int64_t lists = p.per_query ? p.num_queries : 1;
    return p.d_items && p.negatives ? p.num_queries + lists * p.num_negatives : 0;
}

struct Space {
    float* sums;       // [parts, num_queries, 2] largest logit and sum of exponentials
    float* shifts;     // [num_queries] largest logit of the candidates but the target
    float* others;     // [num_queries] sum of their exponentials
    float* factors;    // [num_queries] of d_queries; 0: adds nothing to d_items
    float* shares;     // [num_queries] the same without inverse_temperature, by the largest scale
    float* largest;    // [1] magnitude of a scale
    float* d_queries;  // [parts, num_queries, dim] without factor and target
    float* d_candidates;  // [parts, candidates, dim] without largest / temperature and targets
    float* exponents;     // [num_queries, num_negatives] logits, then exponentials
    float* partials;     // [chunks, 2, dim] rows of d_items that a chunk shares with its neighbours
    uint64_t* words;     // [sort_words(contributions)] row << shift | contribution, sorted
    int64_t floats = 0;  // of all

    // Places in `base`, null where only `floats` is asked.
    Space(const Params& p, float* base) {
        const auto take = [&](int64_t count) {
            float* at = base ? base + floats : nullptr;
            floats += (count + 15) / 16 * 16;
            return at;
        };
        const bool tiled = !p.per_query;
        const bool gradients = p.d_queries || p.d_items;
        const int64_t terms = contributions(p);
        sums = take(tiled ? parts_of_candidates(p).count * p.num_queries * 2 : 0);
        shifts = take(p.num_queries);
        others = take(p.num_queries);
        factors = take(gradients ? p.num_queries : 0);
        shares = take(gradients ? p.num_queries : 0);
        largest = take(1);
        d_queries =
            take(tiled && p.d_queries ? parts_of_candidates(p).count * p.num_queries * p.dim : 0);
        d_candidates =
            take(tiled && p.d_items ? parts_of_queries(p).count * p.candidates() * p.dim : 0);
        exponents = take(tiled ? 0 : p.num_queries * p.num_negatives);
        partials = take(blocks_of(terms, kChunk) * 2 * p.dim);
        words = reinterpret_cast<uint64_t*>(take(terms > 0 ? 2 * cuda::sort_words(terms) : 0));
    }
};

// Sums of exponentials and d_queries own queries, d_items owns candidates.
enum class Of { kSums, kQueries, kItems };

// One pass over all pairs of queries and shared candidates. Of one dtype: each is a file of its
// own, so that they compile side by side.
void launch_pass_float32(const Params& p, const Space& s, Of of, CUstream_st* stream);
void launch_pass_bfloat16(const Params& p, const Space& s, Of of, CUstream_st* stream);
void launch_pass_float16(const Params& p, const Space& s, Of of, CUstream_st* stream);
// Losses, exponentials, factors and d_queries of negatives of each query's own.
void launch_queries(const Params& p, const Space& s, CUstream_st* stream);
// d_items as the sum of the contributions.
void launch_scatter(const Params& p, const Space& s, CUstream_st* stream);

}  // namespace pylum::sampled_softmax
