// The products of outer_pairs.h on AMX: two tiles of keys by two of dims, 4 products and 4 loads of
// tiles for every 32 rows.
#pragma once

#include "attention/cpu/outer_pairs.h"
#include "common/cpu/attention_tiles.h"

namespace pylum::attention {
namespace {

#ifdef PYLUM_TILES

template <int kColumns>
inline void outer_block(const bfloat16* weights, int count, int steps, const float* x, int64_t pad,
                        float* out) {
    if (count >= 2 * kProductRows) {
        load_sums<kColumns>(out, pad);
        multiply_block<kColumns>(weights, kTaskRows, x, pad, steps);
        store_sums<kColumns>(out, pad);
        return;
    }
    // Rows past the last are another's.
    alignas(64) float sums[2 * kProductRows * kColumns * kLanes] = {};
    constexpr int kLead = kColumns * kLanes;
    for (int i = 0; i < count; ++i) {
        memcpy(sums + i * kLead, out + i * pad, sizeof(float) * kLead);
    }
    load_sums<kColumns>(sums, kLead);
    multiply_block<kColumns>(weights, kTaskRows, x, pad, steps);
    store_sums<kColumns>(sums, kLead);
    for (int i = 0; i < count; ++i) {
        memcpy(out + i * pad, sums + i * kLead, sizeof(float) * kLead);
    }
}

// out[i][:] += sum over rows r of key i's weights times x[r][:]. Rows past the last are zero up to
// a multiple of 32; weights of whole tiles of keys are read.
inline void add_outer(const bfloat16* weights, int count, int rows, const uint32_t* x, int64_t pad,
                      float* out) {
    const float* columns = reinterpret_cast<const float*>(x);
    const int steps = (rows + kProductDepth - 1) / kProductDepth;
    for (int i = 0; i < count; i += 2 * kProductRows) {
        int64_t d = 0;
        for (; d + 2 * kLanes <= pad; d += 2 * kLanes) {
            outer_block<2>(weights + i * kTaskRows, count - i, steps, columns + d, pad,
                           out + i * pad + d);
        }
        if (d < pad) {
            outer_block<1>(weights + i * kTaskRows, count - i, steps, columns + d, pad,
                           out + i * pad + d);
        }
    }
}

// The same where a row may hold NaN or infinity: it is taken for zero, then added to the keys that
// it sees.
template <typename Sees>
__attribute__((noinline)) void add_outer_seen(const bfloat16* weights, int count, int rows,
                                              const uint32_t* x, int64_t pad, const Sees& sees,
                                              float* out) {
    alignas(64) uint32_t finite[kTaskRows / 2 * kMaxDim];
    const int64_t units = (rows + 31) / 32 * 16 * pad;
    for (int64_t i = 0; i < units; ++i) {
        const uint32_t low = (x[i] & 0x7f80u) != 0x7f80u ? 0xffffu : 0u;
        const uint32_t high = (x[i] & 0x7f800000u) != 0x7f800000u ? 0xffff0000u : 0u;
        finite[i] = x[i] & (low | high);
    }
    add_outer(weights, count, rows, finite, pad, out);
    for (int64_t i = 0; i < units; ++i) {
        const uint32_t bits = x[i] & ~finite[i];
        for (int at = 0; bits && at < 2 * count; ++at) {
            const int key = at / 2, row = static_cast<int>(i / pad) * 2 + at % 2;
            const bfloat16 value{static_cast<uint16_t>(bits >> (16 * (at % 2)))};
            if (!is_finite(value) && sees(row, key)) {
                out[key * pad + i % pad] +=
                    to_float(weights[key * kTaskRows + row]) * to_float(value);
            }
        }
    }
}
#endif

}  // namespace
}  // namespace pylum::attention
