// Vectors as wide as the ISA this file is compiled for, by GCC vector extensions: + - * / and
// comparisons work lane by lane, mask ? a : b selects. Included by csrc/<op>/cpu files only.
#pragma once

#include <cstdint>
#ifdef __AVX512F__
#include <immintrin.h>
#endif

#include "common/bfloat16.h"
#ifdef __SSE2__
#include <immintrin.h>
#endif

namespace pylum {
namespace {

#if defined(__AVX512F__)
constexpr int kVectorBytes = 64;
#elif defined(__AVX2__)
constexpr int kVectorBytes = 32;
#else
constexpr int kVectorBytes = 16;
#endif
constexpr int kLanes = kVectorBytes / 4;

typedef float vfloat __attribute__((vector_size(kVectorBytes)));
typedef int32_t vint __attribute__((vector_size(kVectorBytes)));
typedef uint32_t vuint __attribute__((vector_size(kVectorBytes)));
typedef uint16_t vhalf __attribute__((vector_size(kVectorBytes / 2)));
typedef float vfloat_unaligned __attribute__((vector_size(kVectorBytes), aligned(4), may_alias));
typedef int32_t vint_unaligned __attribute__((vector_size(kVectorBytes), aligned(4), may_alias));
typedef uint16_t vhalf_unaligned
    __attribute__((vector_size(kVectorBytes / 2), aligned(2), may_alias));

constexpr float kInfinity = __builtin_inff();

inline vfloat broadcast(float x) { return x - vfloat{}; }
inline vint broadcast(int32_t x) { return vint{} + x; }

inline vfloat load(const float* p) { return *reinterpret_cast<const vfloat_unaligned*>(p); }
inline vint load(const int32_t* p) { return *reinterpret_cast<const vint_unaligned*>(p); }
inline vfloat load(const bfloat16* p) {
    const vhalf half = *reinterpret_cast<const vhalf_unaligned*>(p);
    return reinterpret_cast<vfloat>(__builtin_convertvector(half, vuint) << 16);
}
inline void store(float* p, vfloat x) { *reinterpret_cast<vfloat_unaligned*>(p) = x; }
inline void store(bfloat16* p, vfloat x) {
    const vuint bits = reinterpret_cast<vuint>(x);
    const vuint rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
    const vuint out = x == x ? rounded : (bits >> 16) | 0x40u;
    *reinterpret_cast<vhalf_unaligned*>(p) = __builtin_convertvector(out, vhalf);
}

// The first n lanes; the others are zero and their memory is not touched.
template <typename T>
inline vfloat load_first(const T* p, int n) {
    float lanes[kLanes] = {};
    for (int i = 0; i < n; ++i) {
        lanes[i] = to_float(p[i]);
    }
    return load(lanes);
}

// The first n lanes only.
template <typename T>
inline void store_first(T* p, vfloat x, int n) {
    float lanes[kLanes];
    store(lanes, x);
    for (int i = 0; i < n; ++i) {
        from_float(lanes[i], p + i);
    }
}

// a0 b0 a1 b1 ..., the first and the second half of them.
#if defined(__AVX512F__)
inline vfloat interleave_low(vfloat a, vfloat b) {
    return __builtin_shufflevector(a, b, 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
}
inline vfloat interleave_high(vfloat a, vfloat b) {
    return __builtin_shufflevector(a, b, 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15,
                                   31);
}
#elif defined(__AVX2__)
inline vfloat interleave_low(vfloat a, vfloat b) {
    return __builtin_shufflevector(a, b, 0, 8, 1, 9, 2, 10, 3, 11);
}
inline vfloat interleave_high(vfloat a, vfloat b) {
    return __builtin_shufflevector(a, b, 4, 12, 5, 13, 6, 14, 7, 15);
}
#else
inline vfloat interleave_low(vfloat a, vfloat b) {
    return __builtin_shufflevector(a, b, 0, 4, 1, 5);
}
inline vfloat interleave_high(vfloat a, vfloat b) {
    return __builtin_shufflevector(a, b, 2, 6, 3, 7);
}
#endif

// Rows become columns: interleaving row i with row i + half, log2(lanes) times.
__attribute__((always_inline)) inline void transpose(vfloat (&rows)[kLanes]) {
#pragma GCC unroll 4
    for (int step = 1; step < kLanes; step *= 2) {
        vfloat next[kLanes];
#pragma GCC unroll 8
        for (int i = 0; i < kLanes / 2; ++i) {
            next[2 * i] = interleave_low(rows[i], rows[i + kLanes / 2]);
            next[2 * i + 1] = interleave_high(rows[i], rows[i + kLanes / 2]);
        }
#pragma GCC unroll 16
        for (int i = 0; i < kLanes; ++i) {
            rows[i] = next[i];
        }
    }
}

inline vfloat max(vfloat a, vfloat b) { return a > b ? a : b; }

// f of all lanes: of l and l + half of them, and so on.
template <typename F>
inline __attribute__((always_inline)) float fold(vfloat x, const F& f) {
#if defined(__AVX512F__)
    const auto half = f(__builtin_shufflevector(x, x, 0, 1, 2, 3, 4, 5, 6, 7),
                        __builtin_shufflevector(x, x, 8, 9, 10, 11, 12, 13, 14, 15));
#else
    const auto half = x;
#endif
#if defined(__AVX2__)
    const auto quarter = f(__builtin_shufflevector(half, half, 0, 1, 2, 3),
                           __builtin_shufflevector(half, half, 4, 5, 6, 7));
#else
    const auto quarter = half;
#endif
    const auto pair = f(quarter, __builtin_shufflevector(quarter, quarter, 2, 3, 2, 3));
    return f(pair, __builtin_shufflevector(pair, pair, 1, 1, 1, 1))[0];
}

inline float sum(vfloat x) {
    return fold(x, [](auto a, auto b) __attribute__((always_inline)) { return a + b; });
}

inline float max(vfloat x) {
    return fold(x, [](auto a, auto b) __attribute__((always_inline)) { return a > b ? a : b; });
}

// Bit l is set where x[l] >= y[l]; never where one of them is NaN.
inline uint32_t lanes_at_least(vfloat x, vfloat y) {
#if defined(__AVX512F__)
    return _mm512_cmp_ps_mask(reinterpret_cast<__m512>(x), reinterpret_cast<__m512>(y), _CMP_GE_OQ);
#elif defined(__AVX2__)
    return static_cast<uint32_t>(_mm256_movemask_ps(reinterpret_cast<__m256>(x >= y)));
#elif defined(__SSE2__)
    return static_cast<uint32_t>(_mm_movemask_ps(reinterpret_cast<__m128>(x >= y)));
#else
    const vint at_least = x >= y;
    uint32_t bits = 0;
    for (int l = 0; l < kLanes; ++l) {
        bits |= (at_least[l] & 1u) << l;
    }
    return bits;
#endif
}

// e^x within 2 units in the last place; exactly 0 below -87.3, infinity above 88; NaN stays NaN.
// Cephes' polynomial after the reduction x = n ln 2 + r with |r| <= ln 2 / 2.
inline vfloat exp(vfloat x) {
    constexpr float kRound = 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer
    const vfloat shifted = x * 1.44269504088896341f + kRound;
    const vfloat n = shifted - kRound;
    vfloat r = x - n * 0.693359375f;
    r = r - n * -2.12194440e-4f;
    vfloat y = r * 1.9875691500e-4f + 1.3981999507e-3f;
    y = y * r + 8.3334519073e-3f;
    y = y * r + 4.1665795894e-2f;
    y = y * r + 1.6666665459e-1f;
    y = y * r + 5.0000001201e-1f;
    y = y * (r * r) + (r + 1.0f);
    constexpr int32_t kRoundBits = 0x4b400000;
    const vint exponent = reinterpret_cast<vint>(shifted) - (kRoundBits - 127);
    y = y * reinterpret_cast<vfloat>(exponent << 23);
    y = x < -87.3f ? vfloat{} : y;
    return x > 88.0f ? broadcast(kInfinity) : y;
}

// 2^x to 1e-7 of its value; exactly 1 at 0 and 0 at -infinity; within 2^+-126; NaN stays NaN.
inline vfloat exp2(vfloat x) {
#ifdef __AVX512F__
    // Unmasked forms of these warn of uninitialised values inside GCC 12's own header. The order of
    // the maximum's operands keeps NaN.
    constexpr __mmask16 kAll = 0xffff;
    const __m512 bounded = _mm512_maskz_max_ps(kAll, _mm512_set1_ps(-200.0f), (__m512)x);
    const __m512 n = _mm512_maskz_roundscale_ps(kAll, bounded, _MM_FROUND_TO_NEAREST_INT);
    const vfloat r = (vfloat)bounded - (vfloat)n;
#else
    constexpr float kRound = 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer
    vfloat bounded = x < -126.0f ? broadcast(-126.0f) : x;
    bounded = bounded > 127.0f ? broadcast(127.0f) : bounded;
    const vfloat shifted = bounded + kRound;
    const vfloat r = bounded - (shifted - kRound);
#endif
    // Least largest relative error on [-1/2, 1/2] among polynomials that are 1 at 0.
    vfloat y = r * 0.001326472731307149f + 0.009671512991189957f;
    y = y * r + 0.05550733581185341f;
    y = y * r + 0.24022242426872253f;
    y = y * r + 0.6931470036506653f;
    y = y * r + 1.0f;
#ifdef __AVX512F__
    return (vfloat)_mm512_maskz_scalef_ps(kAll, (__m512)y, n);
#else
    const vint exponent = reinterpret_cast<vint>(shifted) - (0x4b400000 - 127);
    return x < -126.0f ? vfloat{} : y * reinterpret_cast<vfloat>(exponent << 23);
#endif
}

}  // namespace
}  // namespace pylum
