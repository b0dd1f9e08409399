// What both passes of pairs.cpp stand on: the workspace, and rows of bfloat16 packed in pairs.
#pragma once

#include <string.h>

#include "common/cpu/units.h"
#include "sampled_softmax/cpu/pair_tiles.h"

namespace pylum::sampled_softmax {
namespace {

constexpr float kLog2e = 1.44269504f;
constexpr int64_t kPanelPairs = kPanel / 2;

// Pairs of consecutive lanes, of `first` and then of `second`.
inline vfloat row_pairs(vfloat first, vfloat second) {
    return (vfloat)_mm512_cvtne2ps_pbh((__m512)second, (__m512)first);
}

struct PairSpace {
    const Params& p;
    const PairLayout at;
    float* const w;
    int32_t* const ids_low;
    int32_t* const ids_high;
    const float scale;  // of logits in powers of two

    explicit PairSpace(const Params& params)
        : p(params),
          at(params),
          w(p.workspace),
          ids_low(reinterpret_cast<int32_t*>(w + at.ids)),
          ids_high(ids_low + at.panels * kPanel),
          scale(p.inverse_temperature * kLog2e) {}

    int64_t in_panel(int64_t panel) const {
        const int64_t left = p.candidates() - panel * kPanel;
        return left < kPanel ? left : kPanel;
    }
    const bfloat16* candidate(int64_t j) const {
        return item_row<bfloat16>(p, p.negatives ? p.negatives[j] : j);
    }
    float* by_item(int64_t panel, int64_t r) const {
        return w + at.by_item + (panel * at.strip + r) * kPanelPairs;
    }
    float* packed(int64_t panel) const { return w + at.packed + panel * at.depth_row * kPanel; }
    static const uint32_t* units(const float* x) { return reinterpret_cast<const uint32_t*>(x); }

    void pack(int64_t panel) const {
        const int64_t count = in_panel(panel), first = panel * kPanel;
        for (int64_t j = 0; j < kPanel; ++j) {
            const int64_t to = first + j;
            if (j >= count) {
                w[at.log_q + to] = kInfinity;  // a logit of -infinity
                ids_low[to] = ids_high[to] = -1;
                continue;
            }
            const int64_t row = p.negatives ? p.negatives[to] : to;
            w[at.log_q + to] = p.log_q ? p.log_q[row] * kLog2e : 0;
            const int64_t id = item_id(p, row);
            ids_low[to] = static_cast<int32_t>(id);
            ids_high[to] = static_cast<int32_t>(id >> 32);
        }
        pack_pairs([&](int64_t j) { return candidate(first + j); }, count, p.dim, packed(panel));
        memset(packed(panel) + at.depth * kPanel, 0,
               sizeof(float) * (at.depth_row - at.depth) * kPanel);
        for (int64_t j = 0; p.d_queries && j < kPanel; j += 2) {
            float* out = w + at.rows + (first + j) / 2 * at.width;
            pair_rows(j < count ? candidate(first + j) : nullptr,
                      j + 1 < count ? candidate(first + j + 1) : nullptr, 1.0f, 1.0f, out);
        }
    }

    // Two rows times their factors in pairs, padded with zeros; no row: zeros.
    void pair_rows(const bfloat16* first, const bfloat16* second, float a, float b,
                   float* out) const {
        for (int64_t d = 0; d < at.width; d += kLanes) {
            const int n = static_cast<int>(p.dim - d < kLanes ? p.dim - d : kLanes);
            store(out + d, pair_lanes(first ? load_lanes(first + d, n) * a : vfloat{},
                                      second ? load_lanes(second + d, n) * b : vfloat{}));
        }
    }
};

}  // namespace
}  // namespace pylum::sampled_softmax
