// One thread per 16 bytes of each half of a head; a block takes whole rows. Every element is read
// once and written once: bound by memory.
#include "common/cuda/launch.h"
#include "common/cuda/numeric.h"
#include "common/cuda/rotation.h"
#include "rotary/rotary.h"

namespace pylum::rotary {
namespace {

using namespace cuda;

constexpr int kThreads = 256;
constexpr int kItems = 4 * kThreads;  // of a block, about

template <typename T, int kCount>
__device__ void turn(const T* from, T* to, const float* cos, const float* sin, bool known,
                     float sign, int64_t half) {
    auto a = load_pack<kCount>(from), b = load_pack<kCount>(from + half);
    rotate<T, kCount>(a, b, cos, sin, known, sign);
    store_pack<kCount>(to, a);
    store_pack<kCount>(to + half, b);
}

template <typename T, int kCount>
__device__ void copy_halves(const T* from, T* to, int64_t half) {
    Pack<T, kCount> a{}, b{};
    if (from) {
        a = load_pack<kCount>(from);
        b = load_pack<kCount>(from + half);
    }
    store_pack<kCount>(to, a);
    store_pack<kCount>(to + half, b);
}

template <typename T, int kCount>
__device__ void run_item(const Params& p, int64_t row, int item, int per_head) {
    const int head = item / per_head;
    const int64_t half = p.head_dim / 2, d = static_cast<int64_t>(item % per_head) * kCount;
    const bool is_q = head < p.heads, is_k = !is_q && head < p.heads + p.kv_heads;
    const int64_t heads = is_q ? p.heads : p.kv_heads;
    const int64_t in_part = is_q ? head : is_k ? head - p.heads : head - p.heads - p.kv_heads;
    T* fused =
        static_cast<T*>(p.fused) + (row * (p.heads + 2 * p.kv_heads) + head) * p.head_dim + d;
    T* apart = static_cast<T*>(is_q ? p.q : is_k ? p.k : p.v);
    if (apart) {
        apart += (row * heads + in_part) * p.head_dim + d;
    }
    const T* from = p.inverse ? apart : fused;
    T* to = p.inverse ? fused : apart;
    if (!from || (!is_q && !is_k)) {
        copy_halves<T, kCount>(from, to, half);
        return;
    }
    const int64_t position = p.positions[row];
    const bool known = position >= 0 && position < p.angles;
    if (!known) {
        report_error(p.errors, kBadPositions);
    }
    const int64_t at = known ? position * half + d : 0;
    turn<T, kCount>(from, to, p.cos + at, p.sin + at, known, p.inverse ? -1.0f : 1.0f, half);
}

template <typename T, int kCount>
__global__ void __launch_bounds__(kThreads) run_kernel(const Params p, int rows_per_block) {
    const int per_head = static_cast<int>(p.head_dim / 2 / kCount);
    const int per_row = static_cast<int>(p.heads + 2 * p.kv_heads) * per_head;
    const int64_t step = static_cast<int64_t>(gridDim.x) * rows_per_block;
    for (int64_t first = static_cast<int64_t>(blockIdx.x) * rows_per_block; first < p.total;
         first += step) {
        const int64_t left = p.total - first;
        const int rows = static_cast<int>(left < rows_per_block ? left : rows_per_block);
        for (int i = threadIdx.x; i < rows * per_row; i += kThreads) {
            run_item<T, kCount>(p, first + i / per_row, i % per_row, per_head);
        }
    }
}

}  // namespace

void launch_run(const Params& p, cudaStream_t stream) {
    for_dtype(p.dtype, [&](auto type) {
        using T = decltype(type);
        const bool wide = p.head_dim / 2 % kPack<T> == 0 && aligned16(p.fused) && aligned16(p.q) &&
                          aligned16(p.k) && aligned16(p.v);
        const int64_t per_row =
            (p.heads + 2 * p.kv_heads) * (p.head_dim / 2) / (wide ? kPack<T> : 1);
        const int rows = static_cast<int>(per_row < kItems ? kItems / (per_row ? per_row : 1) : 1);
        launch("rotary", wide ? run_kernel<T, kPack<T>> : run_kernel<T, 1>,
               dim3(blocks_for(p.total, rows)), kThreads, 0, stream, p, rows);
    });
}

}  // namespace pylum::rotary
