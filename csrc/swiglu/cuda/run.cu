// One thread per 16 bytes of a row; a block takes whole rows. Every element is read once and
// written once: bound by memory.
#include "common/cuda/launch.h"
#include "common/cuda/numeric.h"
#include "swiglu/swiglu.h"

namespace pylum::swiglu {
namespace {

using namespace cuda;

constexpr int kThreads = 256;
constexpr int kItems = 4 * kThreads;  // of a block, about

__device__ inline float sigmoid(float x) { return 1.0f / (1.0f + expf(-x)); }

template <typename T, int kCount>
__device__ void forward_item(const Params& p, int64_t row, int64_t column) {
    const T* gate = static_cast<const T*>(p.gate_up) + row * 2 * p.width + column;
    const auto g = load_pack<kCount>(gate), u = load_pack<kCount>(gate + p.width);
    Pack<T, kCount> out;
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
        const float x = to_float(g.at[i]);
        out.at[i] = from_float<T>(x * sigmoid(x) * to_float(u.at[i]));
    }
    store_pack<kCount>(static_cast<T*>(p.out) + row * p.width + column, out);
}

template <typename T, int kCount>
__device__ void backward_item(const Params& p, int64_t row, int64_t column) {
    const int64_t at = row * 2 * p.width + column;
    const T* gate = static_cast<const T*>(p.gate_up) + at;
    const auto g = load_pack<kCount>(gate), u = load_pack<kCount>(gate + p.width);
    const auto d = load_pack<kCount>(static_cast<const T*>(p.dout) + row * p.width + column);
    Pack<T, kCount> dgate, dup;
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
        const float x = to_float(g.at[i]), dout = to_float(d.at[i]), s = sigmoid(x);
        dup.at[i] = from_float<T>(dout * x * s);
        // silu'(x) = s (1 + x (1 - s))
        dgate.at[i] = from_float<T>(dout * to_float(u.at[i]) * (s * (1.0f + x * (1.0f - s))));
    }
    T* to = static_cast<T*>(p.dgate_up) + at;
    store_pack<kCount>(to, dgate);
    store_pack<kCount>(to + p.width, dup);
}

template <typename T, int kCount, bool kBackward>
__global__ void __launch_bounds__(kThreads) run_kernel(const Params p, int rows_per_block) {
    const int packs = static_cast<int>(p.width / kCount);
    const int64_t step = static_cast<int64_t>(gridDim.x) * rows_per_block;
    for (int64_t first = static_cast<int64_t>(blockIdx.x) * rows_per_block; first < p.rows;
         first += step) {
        const int64_t left = p.rows - first;
        const int rows = static_cast<int>(left < rows_per_block ? left : rows_per_block);
        for (int i = threadIdx.x; i < rows * packs; i += kThreads) {
            const int64_t row = first + i / packs,
                          column = static_cast<int64_t>(i % packs) * kCount;
            if constexpr (kBackward) {
                backward_item<T, kCount>(p, row, column);
            } else {
                forward_item<T, kCount>(p, row, column);
            }
        }
    }
}

template <bool kBackward>
void launch_run(const char* name, const Params& p, cudaStream_t stream) {
    for_dtype(p.dtype, [&](auto type) {
        using T = decltype(type);
        const bool wide = p.width % kPack<T> == 0 && aligned16(p.gate_up) && aligned16(p.dout) &&
                          aligned16(p.out) && aligned16(p.dgate_up);
        const int64_t packs = wide ? p.width / kPack<T> : p.width;
        const int rows = static_cast<int>(packs > 0 && packs < kItems ? kItems / packs : 1);
        launch(name, wide ? run_kernel<T, kPack<T>, kBackward> : run_kernel<T, 1, kBackward>,
               dim3(blocks_for(p.rows, rows)), kThreads, 0, stream, p, rows);
    });
}

}  // namespace

void launch_forward(const Params& p, cudaStream_t stream) {
    launch_run<false>("swiglu", p, stream);
}

void launch_backward(const Params& p, cudaStream_t stream) {
    launch_run<true>("swiglu backward", p, stream);
}

}  // namespace pylum::swiglu
