// Forward pass of target rows: one task per head and section. Keys stand in the vector lanes, so
// that a single row fills them, and pages are read as they lie. For each chunk of 512 keys: all
// scores, one softmax per row, the weighted sum of values; then the parts are merged in order.
// Bound by reading K and V for a few rows, by arithmetic, 4 * rows * keys * head_dim, for many.
#pragma once

#include <cmath>

#include "common/cpu/key_blocks.h"

namespace pylum {
namespace {

template <typename T>
class TargetTask {
    using Left = typename Units<T>::Left;
    using Unit = typename Units<T>::Unit;
    // Rows that go through the keys together.
    static constexpr int kRows = 64;
    static constexpr int kDepth = Units<T>::kDepth;
    // Rows a multiple of 2 KiB apart would share a few sets of the first-level cache.
    static constexpr int64_t kScoreRow = kChunkKeys + 16;
    static constexpr int64_t kWeightRow = kScoreRow * sizeof(float) / sizeof(Left);

  public:
    TargetTask(const AttentionInputs& inputs, const Section& strip, int64_t query_head)
        : p(inputs),
          section(strip),
          s(inputs.batch.sequences[strip.sequence]),
          head(query_head),
          scale(inputs.silu ? inputs.scale : inputs.scale * 1.44269504f),
          width((inputs.value_dim + kLanes - 1) / kLanes * kLanes) {
        const int64_t kv_head = head / (p.heads / p.kv_heads);
        blocks.k = source<T>(p.k, p.k_pages, p.k_row, p.k_head, p.head_dim, kv_head, p, s);
        blocks.v = source<T>(p.v, p.v_pages, p.v_row, p.v_head, p.value_dim, kv_head, p, s);
        blocks.head_dim = p.head_dim;
        blocks.value_dim = p.value_dim;
    }

    void run() {
        for (first_row = 0; first_row < section.rows; first_row += kRows) {
            rows = section.rows - first_row < kRows ? section.rows - first_row : kRows;
            begin();
            for (int64_t chunk = 0; chunk < last_key; chunk += kChunkKeys) {
                history(chunk);
            }
            for (int r = 0; r < rows; ++r) {
                own_group(r);
                finish(r);
            }
        }
    }

  private:
    int64_t target(int r) const { return s.first_target + section.first + first_row + r; }
    int64_t row(int r) const { return strip_row(section, s) + first_row + r; }
    const T* q_row(int r) const {
        return static_cast<const T*>(p.q) + row(r) * p.q_row + head * p.q_head;
    }

    void begin() {
        last_key = 0;
        for (int r = 0; r < rows; ++r) {
            span[r] = target_span(p.batch, target(r));
            span[r].end = span[r].end < s.context ? s.context : span[r].end;
            last_key = span[r].end > last_key ? span[r].end : last_key;
            peak[r] = -kInfinity;
            weight[r] = 0.0f;
        }
        memset(sums, 0, sizeof(float) * rows * width);
        left_row = blocks.key_depth() * kDepth;
        for (int r = 0; r < rows; ++r) {
            const T* x = q_row(r);
            for (int64_t d = 0; d < left_row; ++d) {
                from_float(d < p.head_dim ? to_float(x[d]) : 0.0f, left + r * left_row + d);
            }
        }
    }

    // Of `count` keys from position `at` on, the row sees one, or all.
    bool sees_any(int r, int64_t at, int count) const {
        return at < s.context || (span[r].begin < at + count && span[r].end > at);
    }
    bool sees_all(int r, int64_t at, int count) const {
        return at + count <= s.context || (span[r].begin <= at && span[r].end >= at + count);
    }

    // f(position, number within the chunk, count, first and past the last row that see one of them)
    // for each block of the chunk.
    template <typename F>
    void for_blocks(int64_t chunk, const F& f) {
        for (int64_t at = chunk; at < chunk + kChunkKeys && at < last_key; at += kBlockKeys) {
            const int count =
                static_cast<int>(last_key - at < kBlockKeys ? last_key - at : kBlockKeys);
            int low = 0, high = rows;
            while (low < high && !sees_any(low, at, count)) {
                ++low;
            }
            while (high > low && !sees_any(high - 1, at, count)) {
                --high;
            }
            if (low < high) {
                f(at, static_cast<int>(at - chunk), count, low, high);
            }
        }
    }

    void history(int64_t chunk) {
        for_blocks(chunk, [&](int64_t at, int n, int count, int low, int high) {
            const int64_t after = at + kBlockKeys;
            const bool more = after < last_key && after < chunk + kChunkKeys;
            multiply_units<T>(left + low * left_row, left_row, high - low, blocks.keys(at, count),
                              kBlockKeys, blocks.key_depth(), kBlockKeys,
                              scores + low * kScoreRow + n, kScoreRow, false, scale,
                              more ? blocks.keys_at(after) : blocks.values_at(chunk));
        });
        const int64_t keys = last_key - chunk < kChunkKeys ? last_key - chunk : kChunkKeys;
        const auto within = [&](int64_t position) {
            position -= chunk;
            return static_cast<int>(position < 0 ? 0 : position < keys ? position : keys);
        };
        for (int r = 0; r < rows; ++r) {
            const int end = within(span[r].end), context = within(s.context);
            const int begin = within(span[r].begin) < context ? context : within(span[r].begin);
            part[r] = soften(scores + r * kScoreRow, weights(r), end, context, begin,
                             static_cast<int>(keys));
        }
        memset(part_sums, 0, sizeof(float) * rows * width);
        for_blocks(chunk, [&](int64_t at, int n, int count, int low, int high) {
            bool full = true;
            for (int r = low; r < high && full; ++r) {
                full = sees_all(r, at, count);
            }
            int64_t stride;
            const Unit* values = blocks.values(at, count, &stride);
            const int depth = static_cast<int>(blocks.value_depth(count));
            if (full || finite(values, stride, depth)) {
                const int64_t after = at + kBlockKeys;
                const Unit* next = after >= last_key            ? nullptr
                                   : after < chunk + kChunkKeys ? blocks.values_at(after)
                                                                : blocks.keys_at(after);
                multiply_units<T>(weights(low) + n, kWeightRow, high - low, values, stride, depth,
                                  p.value_dim, part_sums + low * width, width, true, 1.0f, next);
                return;
            }
            for (int r = low; r < high; ++r) {
                seen_values(r, at, count, values, stride);
                multiply_units<T>(weights(r) + n, kWeightRow, 1, seen, p.value_dim, depth,
                                  p.value_dim, part_sums + r * width, width, true, 1.0f, nullptr);
            }
        });
        for (int r = 0; r < rows; ++r) {
            merge(r, part[r], part_sums + r * width);
        }
    }

    Left* weights(int r) { return reinterpret_cast<Left*>(scores) + r * kWeightRow; }

    struct Part {
        float peak, weight;
    };

    // Scores to weights, in place; those outside [0, context) and [begin, end) to zeros, up to the
    // block that holds `keys`. Sums run in the lanes of even and odd vectors, whatever is seen.
    Part soften(float* score, Left* out, int end, int context, int begin, int keys) {
        const float unseen = p.silu ? 0.0f : -kInfinity;
        for (int i = context; i < begin && i < end; ++i) {
            score[i] = unseen;
        }
        for (int i = end; i % kLanes != 0; ++i) {
            score[i] = unseen;
        }
        int i = 0;
        Part sum{-kInfinity, 0.0f};
        if (p.silu) {
            for (; i < end; i += kLanes) {
                const vfloat x = load(score + i);
                store_weights(out + i, x * weight_logistic(x));
            }
        } else {
            vfloat first = broadcast(-kInfinity), second = first;
            for (; i + kLanes < end; i += 2 * kLanes) {
                first = max(load(score + i), first);
                second = max(load(score + i + kLanes), second);
            }
            if (i < end) {
                first = max(load(score + i), first);
            }
            sum.peak = max(max(first, second));
            const float base = sum.peak == -kInfinity ? 0.0f : sum.peak;
            vfloat even{}, odd{};
            for (i = 0; i + kLanes < end; i += 2 * kLanes) {
                const vfloat a = weight_exp2(load(score + i) - base);
                const vfloat b = weight_exp2(load(score + i + kLanes) - base);
                store_weights(out + i, a);
                store_weights(out + i + kLanes, b);
                even += a;
                odd += b;
            }
            if (i < end) {
                const vfloat a = weight_exp2(load(score + i) - base);
                store_weights(out + i, a);
                even += a;
                i += kLanes;
            }
            sum.weight = pylum::sum(even + odd);
        }
        for (; i < (keys + kBlockKeys - 1) / kBlockKeys * kBlockKeys; i += kLanes) {
            store_weights(out + i, vfloat{});
        }
        return sum;
    }

    static void store_weights(float* out, vfloat x) { store(out, x); }
    static void store_weights(bfloat16* out, vfloat x) {
#ifdef __AVX512BF16__
        const __m256bh half = _mm512_cvtneps_pbh((__m512)x);
        memcpy(out, &half, sizeof(half));
#else
        store(out, x);
#endif
    }

    bool finite(const Unit* values, int64_t stride, int depth) const {
        vfloat zeros{};
        for (int i = 0; i < depth; ++i) {
            for_vectors(p.value_dim, [&](int64_t d, int n) {
                const vfloat units = load_units(values + i * stride + d, n);
                if constexpr (kDepth == 1) {
                    zeros += units * 0.0f;
                } else {
                    zeros += first_of_pair(units) * 0.0f + second_of_pair(units) * 0.0f;
                }
            });
        }
        return sum(zeros) == 0.0f;
    }

    // The values of a block with those the row does not see at zero.
    void seen_values(int r, int64_t at, int count, const Unit* values, int64_t stride) {
        memset(seen, 0, sizeof(Unit) * blocks.value_depth(count) * p.value_dim);
        for (int i = 0; i < count; i += kDepth) {
            Unit* out = seen + i / kDepth * p.value_dim;
            const Unit* from = values + i / kDepth * stride;
            if constexpr (kDepth == 1) {
                for (int64_t d = 0; d < p.value_dim; ++d) {
                    out[d] = sees_any(r, at + i, 1) ? from[d] : 0.0f;
                }
            } else {
                const uint32_t kept = (sees_any(r, at + i, 1) ? 0xffffu : 0u) |
                                      (sees_any(r, at + i + 1, 1) ? 0xffff0000u : 0u);
                for (int64_t d = 0; d < p.value_dim; ++d) {
                    out[d] = from[d] & kept;
                }
            }
        }
    }

    // The row over the targets of its group, in chunks from the group's first.
    void own_group(int r) {
        const Span own = group_span(p.batch, target(r));
        for (int64_t chunk = p.batch.group_begin[target(r)]; chunk < own.end; chunk += kChunkKeys) {
            const int end =
                static_cast<int>(own.end - chunk < kChunkKeys ? own.end - chunk : kChunkKeys);
            const int begin = own.begin > chunk ? static_cast<int>(own.begin - chunk) : 0;
            if (begin >= end) {
                continue;
            }
            const int64_t first = chunk - s.first_target;
            for (int i = begin; i < end; ++i) {
                scores[i] = scale * dot(q_row(r), blocks.k.targets + (first + i) * blocks.k.stride);
            }
            const Part own_part = soften(scores, weights(0), end, 0, begin, end);
            memset(part_sums, 0, sizeof(float) * width);
            for (int i = begin; i < end; ++i) {
                const T* value = blocks.v.targets + (first + i) * blocks.v.stride;
                const float share = to_float(weights(0)[i]);
                for_vectors(p.value_dim, [&](int64_t d, int n) {
                    store(part_sums + d, load(part_sums + d) + share * load_lanes(value + d, n));
                });
            }
            merge(r, own_part, part_sums);
        }
    }

    float dot(const T* x, const T* y) const {
        vfloat total{};
        for_vectors(p.head_dim, [&](int64_t d, int n) {
            total += load_lanes(x + d, n) * load_lanes(y + d, n);
        });
        return sum(total);
    }

    // The total and then the part; a part that saw nothing changes no bit.
    void merge(int r, Part other, const float* other_sums) {
        const float top = other.peak > peak[r] ? other.peak : peak[r];
        const float base = top == -kInfinity ? 0.0f : top;
        const vfloat a = p.silu ? broadcast(1.0f) : exp2(broadcast(peak[r] - base));
        const vfloat b = p.silu ? broadcast(1.0f) : exp2(broadcast(other.peak - base));
        peak[r] = top;
        weight[r] = weight[r] * a[0] + other.weight * b[0];
        for (int64_t d = 0; d < width; d += kLanes) {
            float* at = sums + r * width + d;
            store(at, load(at) * a + load(other_sums + d) * b);
        }
    }

    void finish(int r) {
        const float factor = !p.silu          ? 1.0f / weight[r]
                             : p.score_scales ? p.score_scales[row(r)]
                                              : p.score_scale;
        if (p.lse) {
            p.lse[row(r) * p.heads + head] = peak[r] * 0.693147181f + std::log(weight[r]);
        }
        T* out = static_cast<T*>(p.out) + (row(r) * p.heads + head) * p.value_dim;
        for_vectors(p.value_dim, [&](int64_t d, int n) {
            store_lanes(out + d, load(sums + r * width + d) * factor, n);
        });
    }

    const AttentionInputs& p;
    const Section& section;
    const Sequence& s;
    const int64_t head;
    const float scale;    // of scores in powers of two
    const int64_t width;  // value_dim in whole vectors
    int first_row = 0, rows = 0;
    int64_t last_key = 0;  // past the last one any row sees
    Span span[kRows];
    Part part[kRows];
    float peak[kRows], weight[kRows];
    int64_t left_row = 0;
    KeyBlocks<T> blocks;
    alignas(64) Left left[kRows * kMaxDim];        // q, as products take it
    alignas(64) float scores[kRows * kScoreRow];   // [rows][512], then weights
    alignas(64) float part_sums[kRows * kMaxDim];  // [rows][width]
    alignas(64) float sums[kRows * kMaxDim];
    alignas(64) Unit seen[kBlockKeys * kMaxDim / kDepth];
};

}  // namespace
}  // namespace pylum
