// Rows of any width as vectors: whole ones, then the lanes that are left.
#pragma once

#include "common/cpu/vector.h"
#if defined(__AVX2__)
#include <immintrin.h>
#endif

namespace pylum {
namespace {

// The first n lanes; the others are zero, and their memory is not touched.
inline __attribute__((always_inline)) vfloat load_lanes(const float* p, int n) {
    if (n == kLanes) {
        return load(p);
    }
#if defined(__AVX512F__)
    return _mm512_maskz_loadu_ps(static_cast<__mmask16>((1u << n) - 1u), p);
#elif defined(__AVX2__)
    const __m256i lane = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
    return _mm256_maskload_ps(p, _mm256_cmpgt_epi32(_mm256_set1_epi32(n), lane));
#else
    return load_first(p, n);
#endif
}

inline __attribute__((always_inline)) vfloat load_lanes(const bfloat16* p, int n) {
    return n == kLanes ? load(p) : load_first(p, n);
}

inline __attribute__((always_inline)) void store_lanes(float* p, vfloat x, int n) {
    if (n == kLanes) {
        store(p, x);
        return;
    }
#if defined(__AVX512F__)
    _mm512_mask_storeu_ps(p, static_cast<__mmask16>((1u << n) - 1u), x);
#elif defined(__AVX2__)
    const __m256i lane = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
    _mm256_maskstore_ps(p, _mm256_cmpgt_epi32(_mm256_set1_epi32(n), lane), x);
#else
    float lanes[kLanes];
    store(lanes, x);
    for (int i = 0; i < n; ++i) {
        p[i] = lanes[i];
    }
#endif
}

inline __attribute__((always_inline)) void store_lanes(bfloat16* p, vfloat x, int n) {
    const vuint bits = reinterpret_cast<vuint>(x);
    const vuint even = bits + 0x7fffu + ((bits >> 16) & 1u);
    // NaN stays NaN: its mantissa must not round to that of infinity.
    const vuint rounded = x == x ? even : (bits | 0x400000u);
    const vhalf half = __builtin_convertvector(rounded >> 16, vhalf);
    if (n == kLanes) {
        *reinterpret_cast<vhalf_unaligned*>(p) = half;
        return;
    }
    for (int i = 0; i < n; ++i) {
        p[i].bits = half[i];
    }
}

// f(column, lanes) for each vector of a row.
template <typename F>
inline __attribute__((always_inline)) void for_vectors(int64_t width, const F& f) {
    int64_t i = 0;
    for (; i + kLanes <= width; i += kLanes) {
        f(i, kLanes);
    }
    if (i < width) {
        f(i, static_cast<int>(width - i));
    }
}

}  // namespace
}  // namespace pylum
