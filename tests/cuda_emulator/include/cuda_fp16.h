// float16 on the emulator, through the compiler's _Float16.
#pragma once

#include "cuda_runtime.h"

struct __half {
    uint16_t bits;
};
struct alignas(4) __half2 {
    __half x, y;
};

inline float __half2float(__half x) { return static_cast<float>(pylum_bits<_Float16>(x.bits)); }
inline __half __float2half_rn(float x) {
    if (x != x) {
        return {0x7fff};
    }
    return {pylum_bits<uint16_t>(static_cast<_Float16>(x))};
}
inline __half __float2half(float x) { return __float2half_rn(x); }
inline __half2 __floats2half2_rn(float x, float y) {
    return {__float2half_rn(x), __float2half_rn(y)};
}
inline float2 __half22float2(__half2 v) { return {__half2float(v.x), __half2float(v.y)}; }
