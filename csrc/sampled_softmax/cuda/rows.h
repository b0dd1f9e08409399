// What the kernels read of queries and candidates.
#pragma once

#include "common/cuda/numeric.h"
#include "common/cuda/ptx.h"
#include "sampled_softmax/cuda/space.h"

namespace pylum::sampled_softmax {
namespace {

using namespace cuda;

constexpr float kLog2E = 1.44269504f;
constexpr int64_t kNoId = INT64_MIN;  // of a row that is not there

__device__ __forceinline__ float exp_fast(float x) { return exp2_fast(x * kLog2E); }

template <typename T>
__device__ __forceinline__ const T* query_row(const Params& p, int64_t n) {
    return static_cast<const T*>(p.queries) + n * p.queries_stride;
}
template <typename T>
__device__ __forceinline__ const T* item_row(const Params& p, int64_t row) {
    return static_cast<const T*>(p.items) + row * p.items_stride;
}

// `row` where items has it, else -1, noted.
__device__ __forceinline__ int64_t known_row(const Params& p, int64_t row) {
    if (row >= 0 && row < p.num_items) {
        return row;
    }
    report_error(p.errors, kBadIndices);
    return -1;
}

__device__ __forceinline__ int64_t item_id(const Params& p, int64_t row) {
    return row < 0 ? kNoId : p.item_ids ? p.item_ids[row] : row;
}

// What is subtracted from the logits of an item; of a row that is not there NaN.
__device__ __forceinline__ float item_bias(const Params& p, int64_t row) {
    return row < 0 ? quiet_nan() : p.log_q ? p.log_q[row] : 0.0f;
}

// Item of a shared candidate.
__device__ __forceinline__ int64_t candidate_row(const Params& p, int64_t j) {
    return p.negatives ? known_row(p, p.negatives[j]) : j;
}

__device__ __forceinline__ float warp_sum(float x) {
#pragma unroll
    for (int bits = 16; bits > 0; bits /= 2) {
        x += __shfl_xor_sync(~0u, x, bits);
    }
    return x;
}

// A query's loss and the factors of its gradients, from its target's logit and the others' largest
// logit and sum of exponentials. Where the target leads, the loss is small and keeps its digits.
struct Outcome {
    float loss;
    float share;  // 1 / (sum of all exponentials), those of the others at most 1
};

__device__ inline Outcome outcome_of(float target, float shift, float others) {
    const double ahead = static_cast<double>(shift) - target;
    if (ahead < 1) {
        const double e = exp(ahead);
        return {static_cast<float>(log1p(others * e)), static_cast<float>(e / (1.0 + others * e))};
    }
    const double sum = others + exp(-ahead);
    return {static_cast<float>(log(sum) + ahead), static_cast<float>(1.0 / sum)};
}

// The query's loss and what its gradients need; one thread.
__device__ inline void write_outcome(const Params& p, const Space& s, int64_t n, bool good,
                                     float target, float shift, float others) {
    const Outcome o = outcome_of(target, shift, others);
    p.losses[n] = good ? o.loss : quiet_nan();
    s.shifts[n] = shift;
    s.others[n] = others;
    if (p.d_queries || p.d_items) {
        const float scale = p.scales[n], largest = p.per_query ? 1.0f : *s.largest;
        s.factors[n] = scale == 0.0f ? 0.0f
                       : good        ? scale * p.inverse_temperature * o.share
                                     : quiet_nan();
        s.shares[n] = scale == 0.0f || !good ? 0.0f : scale / largest * o.share;
    }
}

}  // namespace
}  // namespace pylum::sampled_softmax
