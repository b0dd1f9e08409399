// Exponentials as precise as weights need be that are rounded to bfloat16, whose units are 2^-8 of
// a value: on AVX512-BF16 only, where products take such weights.
#pragma once

#include "common/cpu/vector.h"

namespace pylum {
namespace {

#ifdef __AVX512BF16__
// 2^x to 9e-5 of its value; exactly 1 at 0, 0 at -infinity, NaN stays NaN.
inline vfloat coarse_exp2(vfloat x) {
    // Unmasked forms of these warn of uninitialised values inside GCC 12's own header.
    constexpr __mmask16 kAll = 0xffff;
    constexpr int kBelow = _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC;
    // scalef takes the floor of its exponent: what is left of x lies in [0, 1).
    const vfloat r = (vfloat)_mm512_maskz_reduce_ps(kAll, (__m512)x, kBelow);
    // Least largest relative error on [0, 1] among polynomials that are 1 at 0.
    vfloat y = r * 0.077067042f + 0.22764499f;
    y = y * r + 0.69511679f;
    y = y * r + 1.0f;
    return (vfloat)_mm512_maskz_scalef_ps(kAll, (__m512)y, (__m512)x);
}

// 1 / (1 + e^-x) to 2e-4 of its value.
inline vfloat coarse_logistic(vfloat x) {
    constexpr __mmask16 kAll = 0xffff;
    const vfloat under = coarse_exp2(x * -1.44269504f) + 1.0f;
    return (vfloat)_mm512_maskz_rcp14_ps(kAll, (__m512)under);
}
#endif

}  // namespace
}  // namespace pylum
