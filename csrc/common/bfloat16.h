// bfloat16 <-> float32 for CPU kernels; rounding to nearest even, NaN stays NaN.
#pragma once

#include <cstdint>
#include <cstring>

namespace pylum {
namespace {

struct bfloat16 {
    uint16_t bits;
};

inline float to_float(float x) { return x; }
inline float to_float(bfloat16 x) {
    const uint32_t u = static_cast<uint32_t>(x.bits) << 16;
    float f;
    memcpy(&f, &u, 4);
    return f;
}

inline void from_float(float x, float* out) { *out = x; }
inline void from_float(float x, bfloat16* out) {
    uint32_t u;
    memcpy(&u, &x, 4);
    const uint32_t rounded = (u + 0x7fffu + ((u >> 16) & 1u)) >> 16;
    out->bits =
        static_cast<uint16_t>((u & 0x7fffffffu) > 0x7f800000u ? (u >> 16) | 0x40u : rounded);
}

}  // namespace
}  // namespace pylum
