// One task per chunk of rows; every element is read once and written once.
#include "common/cpu/rows.h"
#include "common/parallel.h"
#include "rotary/rotary.h"

namespace pylum::rotary::PYLUM_ISA {
namespace {

constexpr int64_t kChunk = 64;

template <typename T>
void turn(const T* from, T* to, const float* cos, const float* sin, float sign, int64_t half) {
    for_vectors(half, [&](int64_t i, int n) {
        const vfloat a = load_lanes(from + i, n);
        const vfloat b = load_lanes(from + half + i, n);
        const vfloat c = load_lanes(cos + i, n);
        const vfloat s = load_lanes(sin + i, n) * sign;
        store_lanes(to + i, a * c - b * s, n);
        store_lanes(to + half + i, b * c + a * s, n);
    });
}

template <typename T>
void zero(T* to, int64_t n) {
    for (int64_t i = 0; i < n; ++i) {
        to[i] = T{};
    }
}

template <typename T>
void run_row(const Params& p, int64_t row) {
    const int64_t half = p.head_dim / 2;
    const float* cos = p.cos + p.positions[row] * half;
    const float* sin = p.sin + p.positions[row] * half;
    T* fused = static_cast<T*>(p.fused) + row * (p.heads + 2 * p.kv_heads) * p.head_dim;
    T* q = p.q ? static_cast<T*>(p.q) + row * p.heads * p.head_dim : nullptr;
    T* k = p.k ? static_cast<T*>(p.k) + row * p.kv_heads * p.head_dim : nullptr;
    T* v = p.v ? static_cast<T*>(p.v) + row * p.kv_heads * p.head_dim : nullptr;
    for (int64_t h = 0; h < p.heads + p.kv_heads; ++h) {
        T* apart = h < p.heads ? q : k;
        T* here = fused + h * p.head_dim;
        if (!apart) {
            zero(here, p.head_dim);
            continue;
        }
        apart += (h < p.heads ? h : h - p.heads) * p.head_dim;
        if (p.inverse) {
            turn(apart, here, cos, sin, -1.0f, half);
        } else {
            turn(here, apart, cos, sin, 1.0f, half);
        }
    }
    T* values = fused + (p.heads + p.kv_heads) * p.head_dim;
    const int64_t width = p.kv_heads * p.head_dim;
    if (!v) {
        zero(values, width);
        return;
    }
    const T* from = p.inverse ? v : values;
    T* to = p.inverse ? values : v;
    for (int64_t i = 0; i < width; ++i) {
        to[i] = from[i];
    }
}

}  // namespace

void run(const Params& p) {
    parallel_for((p.total + kChunk - 1) / kChunk, p.threads, [&](int64_t c) {
        const int64_t stop = (c + 1) * kChunk < p.total ? (c + 1) * kChunk : p.total;
        for (int64_t row = c * kChunk; row < stop; ++row) {
            p.dtype == DType::kFloat32 ? run_row<float>(p, row) : run_row<bfloat16>(p, row);
        }
    });
}

}  // namespace pylum::rotary::PYLUM_ISA
