// What the forward and backward kernels of residual_norm share: a warp's row and its dropout.
#pragma once

#include "common/cuda/launch.h"
#include "common/cuda/numeric.h"
#include "residual_norm/residual_norm.h"

namespace pylum::residual_norm {
namespace {

using namespace cuda;

constexpr int kWarp = 32;

// The mask of the CPU kernels, bit by bit.
struct RowDropout {
    uint32_t low, high, threshold;
    float keep;

    __device__ RowDropout(const Dropout& d, int64_t row) : threshold(d.threshold), keep(d.keep) {
        // splitmix64 of seed and row
        uint64_t x = d.seed + static_cast<uint64_t>(row + 1) * 0x9e3779b97f4a7c15u;
        x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
        x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
        x ^= x >> 31;
        low = static_cast<uint32_t>(x);
        high = static_cast<uint32_t>(x >> 32);
    }

    __device__ float operator()(float value, int64_t column) const {
        // lowbias32 of the column, keyed by both halves
        uint32_t x = static_cast<uint32_t>(column) * 0x9e3779b9u + low;
        x ^= x >> 16;
        x *= 0x7feb352du;
        x ^= (x >> 15) ^ high;
        x *= 0x846ca68bu;
        x ^= x >> 16;
        return x < threshold ? 0.0f : value * keep;
    }
};

// The same in every lane, added in a fixed order.
__device__ inline float sum_of_lanes(float x) {
#pragma unroll
    for (int bits = kWarp / 2; bits > 0; bits /= 2) {
        x += __shfl_xor_sync(~0u, x, bits);
    }
    return x;
}

// The pack of `x`, or zeros where it is null.
template <int kCount, typename T>
__device__ Pack<T, kCount> load_or_zeros(const T* x, int64_t at) {
    Pack<T, kCount> pack{};
    if (x) {
        pack = load_pack<kCount>(x + at);
    }
    return pack;
}

}  // namespace
}  // namespace pylum::residual_norm
