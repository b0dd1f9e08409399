// One warp per new token: it finds the token's sequence and page, then copies all heads, 16 bytes a
// lane. Every element is read once and written once: bound by memory.
#include "append_pages/append_pages.h"
#include "common/cuda/launch.h"
#include "common/cuda/numeric.h"
#include "common/cuda/rotation.h"
#include "common/sequence.h"

namespace pylum::append_pages {
namespace {

using namespace cuda;

constexpr int kThreads = 256;
constexpr int kWarp = 32;
constexpr int kWarps = kThreads / kWarp;

// Where a token goes.
struct Place {
    int64_t page, slot, angle;
    bool good, turns;
};

__device__ Place place_of(const Params& p, int64_t row, bool reports) {
    Place to{};
    // The last sequence that begins at or before the row; bad offsets lead anywhere inside.
    int64_t b = 0, above = p.batch;
    while (above - b > 1) {
        const int64_t middle = b + (above - b) / 2;
        (p.offsets[middle] <= row ? b : above) = middle;
    }
    if (p.batch == 0 || p.offsets[b] > row || p.offsets[b + 1] <= row) {
        if (reports) {
            report_error(p.errors, kBadOffsets);
        }
        return to;
    }
    const int64_t token = p.starts[b] + row - p.offsets[b];
    if (token >= 0 && p.starts[b] >= 0 && token / kBlockKeys < p.table_width) {
        to.page = p.table[b * p.table_row + token / kBlockKeys];
        to.good = to.page >= 0 && to.page < p.num_pages;
    }
    if (!to.good) {
        if (reports) {
            report_error(p.errors, kBadPages);
        }
        return to;
    }
    to.slot = token % kBlockKeys;
    to.angle = p.positions ? p.positions[row] : token;
    to.turns = to.angle >= 0 && to.angle < p.angles;
    if (p.cos && !to.turns && reports) {
        report_error(p.errors, kBadPositions);
    }
    return to;
}

// Element 0 of a head's slot.
template <typename T>
__device__ T* slot_of(const Params& p, void* pages, const Place& to, int64_t head, int64_t dim) {
    return static_cast<T*>(pages) + ((to.page * p.kv_heads + head) * kBlockKeys + to.slot) * dim;
}

template <typename T, int kCount>
__device__ void copy_heads(const Params& p, const T* from, int64_t head_stride, void* pages,
                           const Place& to, int64_t dim) {
    const int per_head = static_cast<int>(dim / kCount);
    const int count = static_cast<int>(p.kv_heads) * per_head;
    for (int i = threadIdx.x % kWarp; i < count; i += kWarp) {
        const int64_t head = i / per_head, d = static_cast<int64_t>(i % per_head) * kCount;
        store_pack<kCount>(slot_of<T>(p, pages, to, head, dim) + d,
                           load_pack<kCount>(from + head * head_stride + d));
    }
}

template <typename T, int kCount>
__device__ void turn_heads(const Params& p, const T* from, const Place& to) {
    const int64_t half = p.head_dim / 2;
    const int per_head = static_cast<int>(half / kCount);
    const int count = static_cast<int>(p.kv_heads) * per_head;
    const int64_t angle = to.turns ? to.angle : 0;
    for (int i = threadIdx.x % kWarp; i < count; i += kWarp) {
        const int64_t head = i / per_head, d = static_cast<int64_t>(i % per_head) * kCount;
        const T* k = from + head * p.k_head + d;
        auto a = load_pack<kCount>(k), b = load_pack<kCount>(k + half);
        rotate<T, kCount>(a, b, p.cos + angle * p.cos_row + d, p.sin + angle * p.sin_row + d,
                          to.turns, 1.0f);
        T* out = slot_of<T>(p, p.k_pages, to, head, p.head_dim) + d;
        store_pack<kCount>(out, a);
        store_pack<kCount>(out + half, b);
    }
}

template <typename T, int kCount>
__global__ void __launch_bounds__(kThreads) forward_kernel(const Params p) {
    const int64_t step = static_cast<int64_t>(gridDim.x) * kWarps;
    const int64_t first = static_cast<int64_t>(blockIdx.x) * kWarps + threadIdx.x / kWarp;
    const bool reports = threadIdx.x % kWarp == 0;
    if (first == 0 && reports && (p.offsets[0] != 0 || p.offsets[p.batch] != p.rows)) {
        report_error(p.errors, kBadOffsets);
    }
    for (int64_t row = first; row < p.rows; row += step) {
        const Place to = place_of(p, row, reports);
        if (!to.good) {
            continue;
        }
        const T* k = static_cast<const T*>(p.k) + row * p.k_row;
        const T* v = static_cast<const T*>(p.v) + row * p.v_row;
        if (p.cos) {
            turn_heads<T, kCount>(p, k, to);
        } else {
            copy_heads<T, kCount>(p, k, p.k_head, p.k_pages, to, p.head_dim);
        }
        copy_heads<T, kCount>(p, v, p.v_head, p.v_pages, to, p.value_dim);
    }
}

}  // namespace

void launch_forward(const Params& p, cudaStream_t stream) {
    for_dtype(p.dtype, [&](auto type) {
        using T = decltype(type);
        const auto whole = [](int64_t elements) { return elements % kPack<T> == 0; };
        const bool wide = whole(p.cos ? p.head_dim / 2 : p.head_dim) && whole(p.value_dim) &&
                          whole(p.k_row) && whole(p.k_head) && whole(p.v_row) && whole(p.v_head) &&
                          aligned16(p.k) && aligned16(p.v) && aligned16(p.k_pages) &&
                          aligned16(p.v_pages);
        launch("append_pages", wide ? forward_kernel<T, kPack<T>> : forward_kernel<T, 1>,
               dim3(blocks_for(p.rows, kWarps)), kThreads, 0, stream, p);
    });
}

}  // namespace pylum::append_pages
