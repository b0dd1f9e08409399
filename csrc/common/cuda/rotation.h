// Rotary positions of a pack of elements of the first half of a head and of the second: every op
// that rotates gives the same bits.
#pragma once

#include "common/cuda/numeric.h"

namespace pylum::cuda {

// Turns by the angles of a row of cos and sin from the pack's first element on; NaN where the row
// is not `known`. `sign` is -1 for the other way.
template <typename T, int kCount>
__device__ __forceinline__ void rotate(Pack<T, kCount>& a, Pack<T, kCount>& b, const float* cos,
                                       const float* sin, bool known, float sign) {
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
        const float c = known ? cos[i] : quiet_nan();
        const float s = known ? sin[i] * sign : quiet_nan();
        const float first = to_float(a.at[i]), second = to_float(b.at[i]);
        a.at[i] = from_float<T>(__fmaf_rn(first, c, -__fmul_rn(second, s)));
        b.at[i] = from_float<T>(__fmaf_rn(second, c, __fmul_rn(first, s)));
    }
}

}  // namespace pylum::cuda
