// Twelve chains of one instruction each, nothing loaded and nothing stored.
#include "common/cpu/vector.h"
#include "multiply_adds/multiply_adds.h"

namespace pylum::multiply_adds::PYLUM_ISA {
namespace {

// The compiler must take x for changed: equal chains would be computed once.
[[gnu::always_inline]] inline void keep(vfloat& x) {
#ifdef __x86_64__
    asm volatile("" : "+x"(x));
#else
    asm volatile("" : "+m"(x));
#endif
}

}  // namespace

void forward(Params& p) {
    vfloat sums[kChains] = {};
#ifdef __AVX512BF16__
    const __m512 a = _mm512_set1_ps(p.factor), b = _mm512_set1_ps(p.addend);
    const __m512bh x = _mm512_cvtne2ps_pbh(a, a), y = _mm512_cvtne2ps_pbh(b, b);
    constexpr int64_t kFlops = 4;
#else
    const vfloat x = broadcast(p.factor), y = broadcast(p.addend);
    constexpr int64_t kFlops = 2;
#endif
    for (int64_t i = 0; i < p.steps; ++i) {
#pragma GCC unroll 12
        for (int c = 0; c < kChains; ++c) {
#ifdef __AVX512BF16__
            sums[c] = (vfloat)_mm512_dpbf16_ps((__m512)sums[c], x, y);
#else
            sums[c] = sums[c] * x + y;
#endif
            keep(sums[c]);
        }
    }
    p.sum = sums[0][0];
    p.flops = kFlops * kChains * kLanes * p.steps;
}

}  // namespace pylum::multiply_adds::PYLUM_ISA
