// One warp per row: it reads branch and residual once, and its own sum again for the normed row,
// which the cache still holds. Bound by memory.
#include "residual_norm/cuda/rows.h"

namespace pylum::residual_norm {
namespace {

constexpr int kWarps = 8;

template <typename T, int kCount>
__device__ void forward_row(const Forward& p, int64_t row) {
    const int lane = static_cast<int>(threadIdx.x) % kWarp;
    const T* residual = p.residual ? static_cast<const T*>(p.residual) + row * p.width : nullptr;
    const T* branch = static_cast<const T*>(p.branch) + row * p.width;
    T* sum_row = static_cast<T*>(p.sum) + row * p.width;
    T* normed = static_cast<T*>(p.normed) + row * p.width;
    const RowDropout dropout(p.dropout, row);
    const bool drops = p.dropout.threshold > 0;
    float squares = 0.0f;
    for (int64_t at = lane * kCount; at < p.width; at += kWarp * kCount) {
        const auto b = load_pack<kCount>(branch + at);
        const auto r = load_or_zeros<kCount>(residual, at);
        Pack<T, kCount> total;
#pragma unroll
        for (int i = 0; i < kCount; ++i) {
            float x = to_float(b.at[i]);
            x = drops ? dropout(x, at + i) : x;
            x = residual ? x + to_float(r.at[i]) : x;
            total.at[i] = from_float<T>(x);
            // The scale is that of the rounded sum, which the backward pass reads.
            x = to_float(total.at[i]);
            squares += x * x;
        }
        store_pack<kCount>(sum_row + at, total);
    }
    const float mean = sum_of_lanes(squares) / static_cast<float>(p.width);
    const float scale = 1.0f / sqrtf(mean + p.eps);
    if (lane == 0) {
        p.scales[row] = scale;
    }
    for (int64_t at = lane * kCount; at < p.width; at += kWarp * kCount) {
        const auto s = load_pack<kCount>(sum_row + at);
        const auto w = load_pack<kCount>(static_cast<const T*>(p.weight) + at);
        Pack<T, kCount> out;
#pragma unroll
        for (int i = 0; i < kCount; ++i) {
            out.at[i] = from_float<T>(to_float(s.at[i]) * scale * to_float(w.at[i]));
        }
        store_pack<kCount>(normed + at, out);
    }
}

template <typename T, int kCount>
__global__ void __launch_bounds__(kWarps* kWarp) forward_kernel(const Forward p) {
    const int64_t step = static_cast<int64_t>(gridDim.x) * kWarps;
    for (int64_t row = static_cast<int64_t>(blockIdx.x) * kWarps + threadIdx.x / kWarp;
         row < p.rows; row += step) {
        forward_row<T, kCount>(p, row);
    }
}

}  // namespace

void launch_forward(const Forward& p, cudaStream_t stream) {
    for_dtype(p.dtype, [&](auto type) {
        using T = decltype(type);
        const bool wide = p.width % kPack<T> == 0 && aligned16(p.residual) && aligned16(p.branch) &&
                          aligned16(p.weight) && aligned16(p.sum) && aligned16(p.normed);
        launch("residual_norm", wide ? forward_kernel<T, kPack<T>> : forward_kernel<T, 1>,
               dim3(blocks_for(p.rows, kWarps)), kWarps * kWarp, 0, stream, p);
    });
}

}  // namespace pylum::residual_norm
