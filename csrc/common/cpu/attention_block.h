// The inner routines of attention on one strip of queries and one block of keys.
//
// Queries stand in the vector lanes: scores are [key][query], so a softmax runs down columns and
// every lane repeats the same operations in the same order whatever its neighbours hold. A strip
// of up to 16 kVecs rows is kept transposed, [dim][16 kVecs].
#pragma once

#include "common/cpu/coarse.h"
#include "common/cpu/vector.h"
#include "common/sequence.h"

namespace pylum {
namespace {

// Register tiles: accumulators of kTile broadcasts by kWide vectors fill the register file.
constexpr int kTile = kVectorBytes == 64 ? 8 : 4;
constexpr int kWide = 2;
constexpr int kMaxDim = 256;

// A block of keys or values in float32: key `i` at data + i * stride.
struct Rows {
    const float* data;
    int64_t stride;
};

// out[i][lane] = sum over d, ascending, of row i's element d times columns[d][lane]. Rows past
// `last` repeat it: their results are masked by the caller.
template <int kVecs, int kKeys, int kPart>
inline void dot_tile(Rows rows, int first, int last, const float* columns, int64_t dim,
                     float* out) {
    constexpr int kLead = kVecs * kLanes;
    const float* row[kKeys];
#pragma GCC unroll 8
    for (int i = 0; i < kKeys; ++i) {
        row[i] = rows.data + (first + i < last ? first + i : last) * rows.stride;
    }
    vfloat sum[kKeys][kPart];
#pragma GCC unroll 8
    for (int i = 0; i < kKeys; ++i) {
#pragma GCC unroll 2
        for (int v = 0; v < kPart; ++v) {
            sum[i][v] = vfloat{};
        }
    }
    for (int64_t d = 0; d < dim; ++d) {
        vfloat column[kPart];
#pragma GCC unroll 2
        for (int v = 0; v < kPart; ++v) {
            column[v] = load(columns + d * kLead + v * kLanes);
        }
#pragma GCC unroll 8
        for (int i = 0; i < kKeys; ++i) {
            const float x = row[i][d];
#pragma GCC unroll 2
            for (int v = 0; v < kPart; ++v) {
                sum[i][v] += x * column[v];
            }
        }
    }
#pragma GCC unroll 8
    for (int i = 0; i < kKeys; ++i) {
#pragma GCC unroll 2
        for (int v = 0; v < kPart; ++v) {
            store(out + (first + i) * kLead + v * kLanes, sum[i][v]);
        }
    }
}

template <int kVecs>
__attribute__((noinline)) void dots(Rows rows, int count, const float* columns, int64_t dim,
                                    float* out) {
    constexpr int kPart = kVecs < kWide ? kVecs : kWide;
    for (int v = 0; v < kVecs; v += kPart) {
        for (int first = 0; first < count; first += kTile) {
            dot_tile<kVecs, kTile, kPart>(rows, first, count - 1, columns + v * kLanes, dim,
                                          out + v * kLanes);
        }
    }
}

// sums[d][lane] = sums[d][lane] * factor[lane] + sum over i, ascending, of row i's element d times
// weights[i][lane]; no factor means 1.
template <int kVecs, int kDims, int kPart>
inline void weighted_tile(Rows rows, int count, const float* weights, const float* factor,
                          float* sums) {
    constexpr int kLead = kVecs * kLanes;
    vfloat sum[kDims][kPart];
#pragma GCC unroll 8
    for (int d = 0; d < kDims; ++d) {
#pragma GCC unroll 2
        for (int v = 0; v < kPart; ++v) {
            sum[d][v] = load(sums + d * kLead + v * kLanes);
            if (factor) {
                sum[d][v] *= load(factor + v * kLanes);
            }
        }
    }
    for (int i = 0; i < count; ++i) {
        vfloat weight[kPart];
#pragma GCC unroll 2
        for (int v = 0; v < kPart; ++v) {
            weight[v] = load(weights + i * kLead + v * kLanes);
        }
        const float* row = rows.data + i * rows.stride;
#pragma GCC unroll 8
        for (int d = 0; d < kDims; ++d) {
            const float x = row[d];
#pragma GCC unroll 2
            for (int v = 0; v < kPart; ++v) {
                sum[d][v] += x * weight[v];
            }
        }
    }
#pragma GCC unroll 8
    for (int d = 0; d < kDims; ++d) {
#pragma GCC unroll 2
        for (int v = 0; v < kPart; ++v) {
            store(sums + d * kLead + v * kLanes, sum[d][v]);
        }
    }
}

template <int kVecs>
__attribute__((noinline)) void add_weighted(Rows rows, int count, const float* weights,
                                            const float* factor, int64_t dim, float* sums) {
    constexpr int kLead = kVecs * kLanes;
    constexpr int kPart = kVecs < kWide ? kVecs : kWide;
    for (int v = 0; v < kVecs * kLanes; v += kPart * kLanes) {
        int64_t d = 0;
        for (; d + kTile <= dim; d += kTile) {
            weighted_tile<kVecs, kTile, kPart>({rows.data + d, rows.stride}, count, weights + v,
                                               factor ? factor + v : nullptr, sums + d * kLead + v);
        }
        for (; d < dim; ++d) {
            weighted_tile<kVecs, 1, kPart>({rows.data + d, rows.stride}, count, weights + v,
                                           factor ? factor + v : nullptr, sums + d * kLead + v);
        }
    }
}

// What the lanes of a strip see of a key space: [begin, end) and [0, context), positions.
struct Spans {
    int32_t begin[kStripRows] = {}, end[kStripRows] = {};
    int64_t context = 0;
    // Over the lanes that were set.
    int64_t least_begin = INT64_MAX, most_begin = 0, least_end = INT64_MAX, most_end = 0;

    void set(int lane, Span s) {
        begin[lane] = static_cast<int32_t>(s.begin);
        end[lane] = static_cast<int32_t>(s.end);
        least_begin = s.begin < least_begin ? s.begin : least_begin;
        most_begin = s.begin > most_begin ? s.begin : most_begin;
        least_end = s.end < least_end ? s.end : least_end;
        most_end = s.end > most_end ? s.end : most_end;
    }
    // Past the last key any lane sees.
    int64_t keys() const { return most_end > context ? most_end : context; }
    // No lane sees any of the keys.
    bool blind(int64_t first, int64_t count) const {
        return first >= context && first + count <= least_begin;
    }
    // Every lane that was set sees all of them.
    bool full(int64_t first, int64_t count) const {
        return first + count <= context || (most_begin <= first && first + count <= least_end);
    }
    vint sees(int v, int64_t key) const {
        const int32_t k = static_cast<int32_t>(key);
        const vint ends = load(end + v * kLanes);
        const vint near = (load(begin + v * kLanes) <= k) & (ends > k);
        return key < context ? near | (ends > 0) : near;
    }
    bool lane_sees(int lane, int64_t key) const {
        return (begin[lane] <= key && key < end[lane]) || (key < context && end[lane] > 0);
    }
};

inline vfloat logistic(vfloat x) { return 1.0f / (1.0f + exp2(x * -1.44269504f)); }

// The same for weights: on AVX512-BF16 products take them as bfloat16.
#ifdef __AVX512BF16__
inline vfloat weight_exp2(vfloat x) { return coarse_exp2(x); }
inline vfloat weight_logistic(vfloat x) { return coarse_logistic(x); }
#else
inline vfloat weight_exp2(vfloat x) { return exp2(x); }
inline vfloat weight_logistic(vfloat x) { return logistic(x); }
#endif

// The running sums of a strip: sums[d][lane] = sum of weight * value, and for softmax the largest
// score and the sum of weights below it, in powers of two.
struct Running {
    alignas(64) float peak[kStripRows], weight[kStripRows];
    alignas(64) float sums[kMaxDim * kStripRows];  // [value_dim][16 kVecs]

    void clear(int64_t value_dim) {
        memset(sums, 0, sizeof(float) * value_dim * kStripRows);
        for (int lane = 0; lane < kStripRows; ++lane) {
            peak[lane] = -kInfinity;
            weight[lane] = 0.0f;
        }
    }
};

// Scores, in powers of two and in place, to weights below the new peak; the factor that moves older
// sums to it. A lane that sees no key keeps its state bit by bit.
template <int kVecs>
__attribute__((noinline)) void softmax_block(float* scores, int count, int64_t first,
                                             const Spans& spans, bool full, Running& run,
                                             float* factor) {
    constexpr int kLead = kVecs * kLanes;
    for (int v = 0; v < kVecs; ++v) {
        float* column = scores + v * kLanes;
        const vfloat old_peak = load(run.peak + v * kLanes);
        for (int i = 0; !full && i < count; ++i) {
            const vfloat s = load(column + i * kLead);
            store(column + i * kLead, spans.sees(v, first + i) ? s : broadcast(-kInfinity));
        }
        // Four chains: one alone would wait for each comparison.
        vfloat peaks[4] = {old_peak, old_peak, old_peak, old_peak};
        int last = 0;
        for (; last + 4 <= count; last += 4) {
#pragma GCC unroll 4
            for (int j = 0; j < 4; ++j) {
                peaks[j] = max(load(column + (last + j) * kLead), peaks[j]);
            }
        }
        for (; last < count; ++last) {
            peaks[0] = max(load(column + last * kLead), peaks[0]);
        }
        const vfloat peak = max(max(peaks[0], peaks[1]), max(peaks[2], peaks[3]));
        const vfloat base = peak == -kInfinity ? broadcast(0.0f) : peak;
        const vfloat move = exp2(old_peak - base);
        vfloat even = load(run.weight + v * kLanes) * move, odd = broadcast(0.0f);
        int i = 0;
        for (; i + 1 < count; i += 2) {
            const vfloat a = weight_exp2(load(column + i * kLead) - base);
            const vfloat b = weight_exp2(load(column + (i + 1) * kLead) - base);
            store(column + i * kLead, a);
            store(column + (i + 1) * kLead, b);
            even += a;
            odd += b;
        }
        if (i < count) {
            const vfloat a = weight_exp2(load(column + i * kLead) - base);
            store(column + i * kLead, a);
            even += a;
        }
        store(run.peak + v * kLanes, peak);
        store(run.weight + v * kLanes, even + odd);
        store(factor + v * kLanes, move);
    }
}

template <int kVecs>
__attribute__((noinline)) void silu_block(float* scores, int count, int64_t first,
                                          const Spans& spans, bool full) {
    constexpr int kLead = kVecs * kLanes;
    for (int i = 0; i < count; ++i) {
        for (int v = 0; v < kVecs; ++v) {
            float* at = scores + i * kLead + v * kLanes;
            const vfloat s = load(at);
            const vfloat weight = s * weight_logistic(s);
            store(at, full ? weight : spans.sees(v, first + i) ? weight : broadcast(0.0f));
        }
    }
}

inline bool all_finite(Rows rows, int count, int64_t dim) {
    vfloat zeros{};
    float zero = 0.0f;
    for (int i = 0; i < count; ++i) {
        const float* row = rows.data + i * rows.stride;
        int64_t d = 0;
        for (; d + kLanes <= dim; d += kLanes) {
            zeros += load(row + d) * 0.0f;
        }
        for (; d < dim; ++d) {
            zero += row[d] * 0.0f;
        }
    }
    return sum(zeros) + zero == 0.0f;
}

// add_weighted() where a row may hold NaN or infinity: lanes that do not see it keep their bits.
template <int kVecs>
__attribute__((noinline)) void add_seen(Rows rows, int count, int64_t first, const Spans& spans,
                                        const float* weights, const float* factor, int64_t dim,
                                        float* sums) {
    constexpr int kLead = kVecs * kLanes;
    for (int64_t at = 0; factor && at < dim * kLead; at += kLanes) {
        store(sums + at, load(sums + at) * load(factor + at % kLead));
    }
    for (int i = 0; i < count; ++i) {
        for (int v = 0; v < kVecs; ++v) {
            const vint sees = spans.sees(v, first + i);
            const vfloat weight = load(weights + i * kLead + v * kLanes);
            for (int64_t d = 0; d < dim; ++d) {
                float* at = sums + d * kLead + v * kLanes;
                const vfloat old = load(at);
                store(at, sees ? old + rows.data[i * rows.stride + d] * weight : old);
            }
        }
    }
}

}  // namespace
}  // namespace pylum
