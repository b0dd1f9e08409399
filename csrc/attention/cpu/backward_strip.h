// The backward pass of one strip of rows in float32 arithmetic. Five products per strip and block
// of keys: scores and dP again, then dq, dk, dv; bound by arithmetic, 10 * rows * keys * head_dim.
#pragma once

#include "attention/cpu/gradients.h"
#include "common/cpu/attention_bias.h"
#include "common/cpu/attention_strip.h"

namespace pylum::attention {
namespace {

// out[i][d] += sum over rows, ascending, of weights[i][row] * x[row][d]; `pad` is a multiple of 16.
template <int kLead, int kKeys, int kPart>
void outer_tile(const float* weights, int first, int last, int rows, const float* x, int64_t pad,
                float* out, int64_t stride) {
    vfloat sum[kKeys][kPart];
    int at[kKeys];
#pragma GCC unroll 8
    for (int i = 0; i < kKeys; ++i) {
        at[i] = first + i < last ? first + i : last;
#pragma GCC unroll 2
        for (int v = 0; v < kPart; ++v) {
            sum[i][v] = load(out + at[i] * stride + v * kLanes);
        }
    }
    for (int r = 0; r < rows; ++r) {
        vfloat row[kPart];
#pragma GCC unroll 2
        for (int v = 0; v < kPart; ++v) {
            row[v] = load(x + r * pad + v * kLanes);
        }
#pragma GCC unroll 8
        for (int i = 0; i < kKeys; ++i) {
            const float weight = weights[at[i] * kLead + r];
#pragma GCC unroll 2
            for (int v = 0; v < kPart; ++v) {
                sum[i][v] += weight * row[v];
            }
        }
    }
#pragma GCC unroll 8
    for (int i = 0; i < kKeys; ++i) {
#pragma GCC unroll 2
        for (int v = 0; v < kPart; ++v) {
            store(out + at[i] * stride + v * kLanes, sum[i][v]);
        }
    }
}

template <int kLead>
__attribute__((noinline)) void add_outer(const float* weights, int count, int rows, const float* x,
                                         int64_t pad, float* out, int64_t stride) {
    int64_t d = 0;
    for (; d + kWide * kLanes <= pad; d += kWide * kLanes) {
        for (int first = 0; first < count; first += kTile) {
            outer_tile<kLead, kTile, kWide>(weights, first, count - 1, rows, x + d, pad, out + d,
                                            stride);
        }
    }
    for (; d < pad; d += kLanes) {
        for (int first = 0; first < count; first += kTile) {
            outer_tile<kLead, kTile, 1>(weights, first, count - 1, rows, x + d, pad, out + d,
                                        stride);
        }
    }
}

// The same where a row may hold NaN or infinity: keys that it does not see take nothing of it.
template <int kLead>
__attribute__((noinline)) void add_outer_seen(const float* weights, int count, int rows,
                                              const float* x, int64_t pad, int64_t first,
                                              const Spans& spans, float* out) {
    for (int i = 0; i < count; ++i) {
        for (int r = 0; r < rows; ++r) {
            for (int64_t d = 0; d < pad && spans.lane_sees(r, first + i); d += kLanes) {
                float* at = out + i * pad + d;
                store(at, load(at) + weights[i * kLead + r] * load(x + r * pad + d));
            }
        }
    }
}

// Row i of out [rows, pad] = factor * row i of x, zero past dim.
template <typename T>
void load_rows(const T* x, int64_t stride, int rows, int64_t dim, int64_t pad, float factor,
               float* out) {
    for (int i = 0; i < rows; ++i) {
        int64_t d = 0;
        for (; d + kLanes <= dim; d += kLanes) {
            store(out + i * pad + d, factor * load(x + i * stride + d));
        }
        for (; d < pad; d += kLanes) {
            const int left = d < dim ? static_cast<int>(dim - d) : 0;
            store(out + i * pad + d, factor * load_first(x + i * stride + d, left));
        }
    }
}

// `y` is padded with zeros to whole vectors.
template <typename T>
float dot(const T* x, const float* y, int64_t dim) {
    vfloat total{};
    int64_t d = 0;
    for (; d + kLanes <= dim; d += kLanes) {
        total += load(x + d) * load(y + d);
    }
    if (d < dim) {
        total += load_first(x + d, static_cast<int>(dim - d)) * load(y + d);
    }
    return sum(total);
}

template <typename T, int kVecs>
struct BackwardStrip {
    static constexpr int kLead = kVecs * kLanes;
    alignas(64) float q_columns[kMaxDim * kLead];  // scaled as in the forward pass
    alignas(64) float dout_columns[kMaxDim * kLead];
    alignas(64) float dq_columns[kMaxDim * kLead];
    alignas(64) float q_rows[kLead * kMaxDim];  // times scale
    alignas(64) float dout_rows[kLead * kMaxDim];
    alignas(64) float weights[kBlockKeys * kLead];   // scores, then softmax or scaled SiLU
    alignas(64) float dweights[kBlockKeys * kLead];  // its gradient, then that of scale * q.k
    alignas(64) float lse[kLead];                    // in powers of two; SiLU: the score scale
    alignas(64) float delta[kLead];                  // sum of out * dout
    alignas(64) float k_buffer[sizeof(T) == 4 ? 1 : kBlockKeys * kMaxDim];
    alignas(64) float v_buffer[sizeof(T) == 4 ? 1 : kBlockKeys * kMaxDim];
    int count_rows;
    bool rows_finite;  // of q and dout
    BiasRows rows;     // where there is a bias
    Gradients to;

    void softmax_gradient(int count, int64_t first, const Spans& spans, bool full) {
        for (int i = 0; i < count; ++i) {
            for (int v = 0; v < kVecs; ++v) {
                const int64_t at = i * kLead + v * kLanes;
                vfloat p = exp2(load(weights + at) - load(lse + v * kLanes));
                vfloat ds = p * (load(dweights + at) - load(delta + v * kLanes));
                if (!full) {
                    const vint sees = spans.sees(v, first + i);
                    p = sees ? p : broadcast(0.0f);
                    ds = sees ? ds : broadcast(0.0f);
                }
                store(weights + at, p);
                store(dweights + at, ds);
            }
        }
    }

    void silu_gradient(int count, int64_t first, const Spans& spans, bool full) {
        for (int i = 0; i < count; ++i) {
            for (int v = 0; v < kVecs; ++v) {
                const int64_t at = i * kLead + v * kLanes;
                const vfloat s = load(weights + at);
                const vfloat scale = load(lse + v * kLanes);
                const vfloat gate = logistic(s);
                vfloat p = s * gate * scale;
                vfloat ds = load(dweights + at) * scale * (gate * (1.0f + s * (1.0f - gate)));
                if (!full) {
                    const vint sees = spans.sees(v, first + i);
                    p = sees ? p : broadcast(0.0f);
                    ds = sees ? ds : broadcast(0.0f);
                }
                store(weights + at, p);
                store(dweights + at, ds);
            }
        }
    }

    // The block of keys at number `at` of the sequence, at `first` of the spans.
    void block(const AttentionInputs& p, const T* k, const T* v, int64_t at, int64_t first,
               int count, const Spans& spans, bool full, const BiasKeys& bias) {
        const Rows keys = rows_of(k, p.k_row, count, p.head_dim, k_buffer);
        const Rows values = rows_of(v, p.v_row, count, p.value_dim, v_buffer);
        dots<kVecs>(keys, count, q_columns, p.head_dim, weights);
        dots<kVecs>(values, count, dout_columns, p.value_dim, dweights);
        if (p.bias.given()) {
            add_bias<kVecs>(p.bias, rows, bias, weights);
        }
        if (p.silu) {
            silu_gradient(count, first, spans, full);
        } else {
            softmax_gradient(count, first, spans, full);
        }
        if (p.bias.given()) {
            add_bias_gradient<kVecs>(p.bias, rows, bias, dweights, to.dpositions, to.dtimes);
        }
        if (full || all_finite(keys, count, p.head_dim)) {
            add_weighted<kVecs>(keys, count, dweights, nullptr, p.head_dim, dq_columns);
        } else {
            add_seen<kVecs>(keys, count, first, spans, dweights, nullptr, p.head_dim, dq_columns);
        }
        const auto outer = [&](const float* factors, const float* x, int64_t pad, float* out) {
            if (full || rows_finite) {
                add_outer<kLead>(factors, count, count_rows, x, pad, out + at * pad, pad);
            } else {
                add_outer_seen<kLead>(factors, count, count_rows, x, pad, first, spans,
                                      out + at * pad);
            }
        };
        outer(dweights, q_rows, padded(p.head_dim), to.dk);
        outer(weights, dout_rows, padded(p.value_dim), to.dv);
    }

    void load_strip(const BackwardParams& b, const Section& strip, int64_t row, int64_t head) {
        const AttentionInputs& p = b.in;
        const T* q = static_cast<const T*>(p.q) + row * p.q_row + head * p.q_head;
        const T* dout = static_cast<const T*>(b.dout) + row * b.dout_row + head * b.dout_head;
        load_columns<kVecs>(q, p.q_row, strip.rows, p.head_dim, p.silu ? p.scale : p.scale * kLog2e,
                            q_columns);
        load_columns<kVecs>(dout, b.dout_row, strip.rows, p.value_dim, 1.0f, dout_columns);
        load_rows(q, p.q_row, strip.rows, p.head_dim, padded(p.head_dim), p.scale, q_rows);
        load_rows(dout, b.dout_row, strip.rows, p.value_dim, padded(p.value_dim), 1.0f, dout_rows);
        const auto finite = [&](const float* x, int64_t pad) {
            return all_finite({x, pad}, strip.rows, pad);
        };
        rows_finite = finite(q_rows, padded(p.head_dim)) && finite(dout_rows, padded(p.value_dim));
        memset(dq_columns, 0, sizeof(float) * p.head_dim * kLead);
        const int64_t stride = p.heads * p.value_dim;
        const T* out = static_cast<const T*>(p.out) + row * stride + head * p.value_dim;
        for (int i = 0; i < kLead; ++i) {
            lse[i] = delta[i] = 0.0f;
            if (i >= strip.rows) {
                continue;
            }
            if (p.silu) {
                lse[i] = p.score_scales ? p.score_scales[row + i] : p.score_scale;
                continue;
            }
            lse[i] = p.lse[(row + i) * p.heads + head] * kLog2e;
            delta[i] = dot(out + i * stride, dout_rows + i * padded(p.value_dim), p.value_dim);
        }
    }

    void run(const BackwardParams& b, const Section& strip, int64_t kv_head, int64_t head,
             const Gradients& gradients) {
        const AttentionInputs& p = b.in;
        const Sequence& s = p.batch.sequences[strip.sequence];
        const int64_t row = strip_row(strip, s);
        to = gradients;
        count_rows = strip.rows;
        load_strip(b, strip, row, head);
        if (p.bias.given()) {
            rows = bias_rows(p, strip, s, row);
        }
        const T* k = static_cast<const T*>(p.k) + s.first_row * p.k_row + kv_head * p.k_head;
        const T* v = static_cast<const T*>(p.v) + s.first_row * p.v_row + kv_head * p.v_head;
        const auto keys = [&](int64_t first, int count, const Spans& spans, bool full,
                              bool targets) {
            const int64_t at = targets ? s.history + first : first;
            BiasKeys bias{};
            if (p.bias.given()) {
                bias = bias_keys(p.bias, s, first, count, targets);
            }
            block(p, k + at * p.k_row, v + at * p.v_row, at, first, count, spans, full, bias);
        };
        const Spans spans = history_spans(p.batch, strip, s);
        const int64_t end = spans.keys();
        for (int64_t first = 0; first < end; first += kBlockKeys) {
            if (!spans.blind(first, kBlockKeys)) {
                const int count =
                    static_cast<int>(end - first < kBlockKeys ? end - first : kBlockKeys);
                to.turn.wait(first + kBlockKeys);
                keys(first, count, spans, spans.full(first, count), false);
                to.turn.pass(first + kBlockKeys);
            }
        }
        to.turn.wait(kAllKeys);
        if (strip.targets) {
            for_group_blocks(p.batch, strip, s, [&](int64_t first, int count, const Spans& own) {
                keys(first, count, own, false, true);
            });
        }
        to.turn.pass(kAllKeys);
        for (int i = 0; i < kLead; ++i) {
            delta[i] = p.scale;
        }
        const int64_t stride = p.heads * p.head_dim;
        store_columns<kVecs>(dq_columns, delta, strip.rows, p.head_dim,
                             static_cast<T*>(b.dq) + row * stride + head * p.head_dim, stride);
    }
};

template <typename T>
__attribute__((noinline)) void run_strip(const BackwardParams& b, const Section& strip,
                                         int64_t kv_head, int64_t head, const Gradients& to) {
    if (strip.rows <= 16) {
        BackwardStrip<T, 16 / kLanes> work;
        work.run(b, strip, kv_head, head, to);
    } else {
        BackwardStrip<T, 32 / kLanes> work;
        work.run(b, strip, kv_head, head, to);
    }
}

}  // namespace
}  // namespace pylum::attention
