// Weights of a block of keys and a section of rows in bfloat16, and their products with rows in
// pairs.
#pragma once

#include "common/cpu/attention_pairs.h"

namespace pylum::attention {
namespace {

#ifdef __AVX512BF16__

// The lanes of one key as bfloat16, in order: pairs of consecutive rows.
inline void store_row(const vfloat (&x)[2], bfloat16* out) {
    const __m512bh rounded = _mm512_cvtne2ps_pbh((__m512)x[1], (__m512)x[0]);
    memcpy(out, &rounded, 64);
}
inline void store_row(const vfloat (&x)[1], bfloat16* out) {
    const __m256bh rounded = _mm512_cvtneps_pbh((__m512)x[0]);
    memcpy(out, &rounded, 32);
}

// Of `weights` key i stands at weights + i * kTaskRows, a pair of rows is one unit.
// out[i][:] += sum over pairs r, ascending, of key i's weights r times x[r][:].
template <int kKeys, int kPart>
inline void outer_tile(const bfloat16* weights, int last, int pairs, const uint32_t* x, int64_t pad,
                       float* out) {
    const bfloat16* row[kKeys];
    float* to[kKeys];
    vfloat sum[kKeys][kPart];
#pragma GCC unroll 8
    for (int i = 0; i < kKeys; ++i) {
        row[i] = weights + (i < last ? i : last) * kTaskRows;
        to[i] = out + (i < last ? i : last) * pad;
#pragma GCC unroll 4
        for (int v = 0; v < kPart; ++v) {
            sum[i][v] = load(to[i] + v * kLanes);
        }
    }
    for (int r = 0; r < pairs; ++r) {
        vfloat both[kPart];
#pragma GCC unroll 4
        for (int v = 0; v < kPart; ++v) {
            both[v] = load(reinterpret_cast<const float*>(x + r * pad) + v * kLanes);
        }
#pragma GCC unroll 8
        for (int i = 0; i < kKeys; ++i) {
            const __m512bh weight = pair_of(row[i] + 2 * r);
#pragma GCC unroll 4
            for (int v = 0; v < kPart; ++v) {
                sum[i][v] = add_pairs(sum[i][v], weight, both[v]);
            }
        }
    }
#pragma GCC unroll 8
    for (int i = 0; i < kKeys; ++i) {
#pragma GCC unroll 4
        for (int v = 0; v < kPart; ++v) {
            store(to[i] + v * kLanes, sum[i][v]);
        }
    }
}

template <int kKeys, int kPart>
__attribute__((noinline)) void outer_columns(const bfloat16* weights, int count, int pairs,
                                             const uint32_t* x, int64_t pad, float* out) {
    for (int first = 0; first < count; first += kKeys) {
        outer_tile<kKeys, kPart>(weights + first * kTaskRows, count - 1 - first, pairs, x, pad,
                                 out + first * pad);
    }
}

#ifndef PYLUM_TILES
inline void add_outer(const bfloat16* weights, int count, int rows, const uint32_t* x, int64_t pad,
                      float* out) {
    const int pairs = (rows + 1) / 2;
    int64_t d = 0;
    for (; d + 4 * kLanes <= pad; d += 4 * kLanes) {
        outer_columns<4, 4>(weights, count, pairs, x + d, pad, out + d);
    }
    for (; d + 2 * kLanes <= pad; d += 2 * kLanes) {
        outer_columns<8, 2>(weights, count, pairs, x + d, pad, out + d);
    }
    for (; d < pad; d += kLanes) {
        outer_columns<8, 1>(weights, count, pairs, x + d, pad, out + d);
    }
}

// The same where a row may hold NaN or infinity: keys that it does not see take it for zero.
template <typename Sees>
__attribute__((noinline)) void add_outer_seen(const bfloat16* weights, int count, int rows,
                                              const uint32_t* x, int64_t pad, const Sees& sees,
                                              float* out) {
    for (int i = 0; i < count; ++i) {
        for (int r = 0; r < rows; r += 2) {
            const vint kept = broadcast(static_cast<int32_t>((sees(r, i) ? 0xffffu : 0u) |
                                                             (sees(r + 1, i) ? ~0xffffu : 0)));
            const __m512bh weight = pair_of(weights + i * kTaskRows + r);
            for (int64_t d = 0; d < pad; d += kLanes) {
                const vint both =
                    load(reinterpret_cast<const int32_t*>(x + r / 2 * pad + d)) & kept;
                float* at = out + i * pad + d;
                store(at, add_pairs(load(at), weight, (vfloat)both));
            }
        }
    }
}
#endif
#endif

}  // namespace
}  // namespace pylum::attention
