// The score functions, and how the sums of parts of a row's keys become one.
#pragma once

#include "common/cuda/attention.h"
#include "common/cuda/numeric.h"
#include "common/cuda/ptx.h"

namespace pylum::cuda {

constexpr float kLog2e = 1.44269504f;
constexpr float kLn2 = 0.693147181f;

template <typename T>
__device__ __forceinline__ float exp2_of(float x) {
    if constexpr (sizeof(T) == 4) {
        return exp2f(x);
    } else {
        return exp2_fast(x);
    }
}

template <typename T>
__device__ __forceinline__ float silu(float x) {
    if constexpr (sizeof(T) == 4) {
        return x / (1.0f + exp2f(-kLog2e * x));
    } else {
        return x * reciprocal_fast(1.0f + exp2_fast(-kLog2e * x));
    }
}

// Weight and score gradient of a pair, from its score and the gradient of its weight. `level` is
// the row's lse in powers of two, or the SiLU scale; `delta` its sum of out * dout.
struct PairGradient {
    float weight, score;
};

template <typename T, bool kSilu>
__device__ __forceinline__ PairGradient pair_gradient(float score, float dweight, float level,
                                                      float delta) {
    if constexpr (kSilu) {
        const float gate = sizeof(T) == 4 ? 1.0f / (1.0f + exp2f(-kLog2e * score))
                                          : reciprocal_fast(1.0f + exp2_fast(-kLog2e * score));
        return {score * gate * level, dweight * level * (gate * (1.0f + score * (1.0f - gate)))};
    } else {
        const float weight = exp2_of<T>(score * kLog2e - level);
        return {weight, weight * (dweight - delta)};
    }
}

template <bool kSilu>
__device__ __forceinline__ float row_level(const AttentionInputs& in, int64_t row, int head) {
    if constexpr (kSilu) {
        return in.score_scales ? in.score_scales[row] : in.score_scale;
    } else {
        return in.lse[row * in.heads + head] * kLog2e;
    }
}

// Sums below an old peak and a new one, both moved to the higher. A part that saw nothing changes
// no bit of the other.
struct Merge {
    float peak, old, fresh;
};

template <typename T, bool kSilu>
__device__ __forceinline__ Merge merge_factors(float old_peak, float new_peak) {
    if (kSilu) {
        return {-INFINITY, 1.0f, 1.0f};
    }
    const float peak = fmaxf(old_peak, new_peak);
    const float base = peak == -INFINITY ? 0.0f : peak;
    return {peak, exp2_of<T>(old_peak - base), exp2_of<T>(new_peak - base)};
}

__device__ __forceinline__ float merged(const Merge& m, float old, float fresh) {
    return __fmaf_rn(old, m.old, __fmul_rn(fresh, m.fresh));
}

// The sums of one target, head and chunk: value_dim sums, the peak, the weight.
__device__ __forceinline__ float* part_of(const AttentionParams& p, int64_t chunk, int64_t target,
                                          int head) {
    return p.parts + ((chunk * p.targets + target) * p.in.heads + head) * (p.in.value_dim + 2);
}

// What turns a row's sums into its output; lse is written by the thread that `writes`.
template <bool kSilu>
__device__ __forceinline__ float final_factor(const AttentionInputs& in, int64_t row, int head,
                                              float peak, float weight, bool writes) {
    if (kSilu) {
        return in.score_scales ? in.score_scales[row] : in.score_scale;
    }
    if (in.lse && writes) {
        in.lse[row * in.heads + head] = peak * kLn2 + logf(weight);
    }
    return 1.0f / weight;
}

template <typename T>
__device__ __forceinline__ float element(const T* x, int64_t row, int column, int dim) {
    return column >= dim ? 0.0f : x ? to_float(x[row + column]) : quiet_nan();
}

// One head of `count` rows from `first` of out [rows, heads, dim], where the batch contradicts
// itself.
template <typename T>
__device__ void store_nan(void* out, int64_t first, int count, int64_t rows, int64_t heads,
                          int head, int64_t dim) {
    for (int64_t i = threadIdx.x; i < count * dim; i += blockDim.x) {
        const int64_t row = first + i / dim;
        if (row < rows) {
            static_cast<T*>(out)[(row * heads + head) * dim + i % dim] = from_float<T>(quiet_nan());
        }
    }
}

}  // namespace pylum::cuda
