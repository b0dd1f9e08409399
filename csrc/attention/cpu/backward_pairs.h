// The backward pass on AVX512-BF16 and AMX, all five products of bfloat16 pairs: of consecutive
// depth in scores and dP, of consecutive keys in dq, of consecutive rows in dk and dv. Weights and
// the gradients of scores are rounded to bfloat16, sums are float32.
//
// A section of up to 128 rows of one head goes through the keys block by block: what is packed of a
// block serves all its strips, and dk and dv of the block are read and written once.
#pragma once

#include "attention/cpu/gradients.h"
#include "attention/cpu/outer_tiles.h"
#include "attention/cpu/pair_rows.h"
#include "common/cpu/coarse.h"

namespace pylum::attention {
namespace {

#ifdef __AVX512BF16__

class PairSection : PairRows {
  public:
    using PairRows::PairRows;

    void run(const Section& part, int64_t query_head, const Gradients& gradients) {
        section = part;
        head = query_head;
        to = gradients;
        load_rows();
        prefetched = 0;
        int64_t end = 0;
        const Spans* spans[kTaskRows / kStripRows];
        for (int i = 0; i < count; ++i) {
            spans[i] = &strips[i].spans;
            end = spans[i]->keys() > end ? spans[i]->keys() : end;
        }
        for (int64_t first = 0; first < end; first += kBlockKeys) {
            const auto takes = [&](int i) {
                return first < spans[i]->keys() && !spans[i]->blind(first, kBlockKeys);
            };
            bool loaded = false;
            for (int i = 0; i < count; ++i) {
                int last = i;
                for (; last < count && takes(last); ++last) {
                }
                if (last == i) {
                    continue;
                }
                if (!loaded) {
                    load_block(first, block_size(end - first), false);
                    loaded = true;
                }
                to.turn.wait(first + kBlockKeys);
                block(i, last, first, spans, false);
                i = last;
            }
            if (loaded) {
                to.turn.pass(first + kBlockKeys);
                if (prefetched < kTaskRows) {
                    prefetch_next();
                }
            }
        }
        to.turn.wait(kAllKeys);
        for (int i = 0; i < count && section.targets; ++i) {
            for_group_blocks(p.batch, strip_section(i), s,
                             [&](int64_t first, int size, const Spans& own) {
                                 load_block(first, size, true);
                                 spans[i] = &own;
                                 block(i, i + 1, first, spans, true);
                             });
        }
        to.turn.pass(kAllKeys);
        for (int i = 0; i < count; ++i) {
            strips[i].narrow() ? write_dq<1>(i) : write_dq<2>(i);
        }
    }

  private:
    // Strips [begin, end) on the block that is loaded; each sees some of its keys.
    void block(int begin, int end, int64_t first, const Spans* const* spans, bool own) {
        int size = 0;
        for (int i = begin; i < end; ++i) {
            const int64_t left = spans[i]->keys() - first;
            size = left > size ? block_size(left) : size;
        }
        // The strip's rows of other groups see none of a group's keys.
        bool full = !own;
        for (int i = begin; i < end; ++i) {
            full = full && spans[i]->full(first, size);
            strips[i].narrow() ? strip_block<1>(i, first, size, *spans[i], own)
                               : strip_block<2>(i, first, size, *spans[i], own);
        }
        const int64_t at = own ? s.history + first : first;
        const int rows = (end - 1 - begin) * kStripRows + strips[end - 1].rows;
        const bool plain = full || rows_finite;
        const auto sees = [&](int row, int key) {
            return row < rows &&
                   spans[begin + row / kStripRows]->lane_sees(row % kStripRows, first + key);
        };
        const auto outer = [&](const bfloat16* x, const uint32_t* pairs, int64_t pad, float* out) {
            x += begin * kStripRows;
            pairs += begin * kStripRows / 2 * pad;
            if (plain) {
                add_outer(x, size, rows, pairs, pad, out + at * pad);
            } else {
                add_outer_seen(x, size, rows, pairs, pad, sees, out + at * pad);
            }
        };
        outer(dweights, q_pairs, padded(p.head_dim), to.dk);
        outer(weights, dout_pairs, padded(p.value_dim), to.dv);
    }

    template <int kVecs>
    __attribute__((noinline)) void strip_block(int i, int64_t first, int block_size_,
                                               const Spans& spans, bool own) {
        PairStrip& strip = strips[i];
        const int size = block_size(spans.keys() - first);
        const bool full = !own && spans.full(first, size);
        dots<kVecs>(keys, size, strip.q_columns, (p.head_dim + 1) / 2,
                    p.silu ? p.scale : p.scale * kLog2e, scores);
        dots<kVecs>(values, size, strip.dout_columns, (p.value_dim + 1) / 2, 1.0f, dscores);
        BiasKeys bias{};
        if (p.bias.given()) {
            bias = bias_keys(p.bias, s, first, size, own);
            add_bias<kVecs>(p.bias, strip.bias, bias, scores);
        }
        const int column = i * kStripRows;
        const auto silu = [&](int v, vfloat gate, vfloat& x, vfloat& dx) {
            const vfloat scale = load(strip.lse + v * kLanes);
            dx = dx * scale * (gate * (1.0f + x * (1.0f - gate)));
            x = x * gate * scale;
        };
        if (!p.silu) {
            gradients<kVecs>(size, column, first, spans, full, [&](int v, vfloat& x, vfloat& dx) {
                x = coarse_exp2(x - load(strip.lse + v * kLanes));
                dx = x * (dx - load(strip.delta + v * kLanes));
            });
        } else if (!p.bias.given()) {
            gradients<kVecs>(size, column, first, spans, full, [&](int v, vfloat& x, vfloat& dx) {
                silu(v, coarse_logistic(x), x, dx);
            });
        } else {
            // The gradients of a bias's tables are float32.
            gradients<kVecs>(size, column, first, spans, full,
                             [&](int v, vfloat& x, vfloat& dx) { silu(v, logistic(x), x, dx); });
        }
        // A product takes whole strips of rows.
        for (int key = 0; kTiles && kVecs == 1 && key < block_size_; ++key) {
            memset(weights + key * kTaskRows + column + kLanes, 0, sizeof(bfloat16) * kLanes);
            memset(dweights + key * kTaskRows + column + kLanes, 0, sizeof(bfloat16) * kLanes);
        }
        for (int key = size; key < block_size_; ++key) {
            memset(weights + key * kTaskRows + column, 0, sizeof(bfloat16) * kVecs * kLanes);
            memset(dweights + key * kTaskRows + column, 0, sizeof(bfloat16) * kVecs * kLanes);
        }
        if (p.bias.given()) {
            add_bias_gradient<kVecs>(p.bias, strip.bias, bias, dscores, to.dpositions, to.dtimes);
        }
        const bool whole = full && (kTiles ? size == block_keys : size % 2 == 0);
        if (whole || keys_finite()) {
            add_products<kVecs>(key_columns, size, dpairs, p.head_dim, strip.dq_columns);
        } else {
            add_seen_products<kVecs>(key_columns, size, first, spans, dpairs, p.head_dim,
                                     strip.dq_columns);
        }
    }

    // Scores and dP to weights and the gradients of scores, by f(vector, score, dP) in place.
    template <int kVecs, typename F>
    void gradients(int size, int column, int64_t first, const Spans& spans, bool full, const F& f) {
        constexpr int kLead = kVecs * kLanes;
        const bool keep = p.bias.given();
        for (int i = 0; i < size; i += 2) {
            vfloat x[2][kVecs], dx[2][kVecs];
#pragma GCC unroll 2
            for (int j = 0; j < 2; ++j) {
#pragma GCC unroll 2
                for (int v = 0; v < kVecs; ++v) {
                    const int at = (i + j) * kLead + v * kLanes;
                    x[j][v] = load(scores + at);
                    dx[j][v] = load(dscores + at);
                    f(v, x[j][v], dx[j][v]);
                    if (!full) {
                        const vint sees = spans.sees(v, first + i + j);
                        x[j][v] = sees ? x[j][v] : vfloat{};
                        dx[j][v] = sees ? dx[j][v] : vfloat{};
                    }
                    if (j == 1 && i + 1 == size) {
                        x[j][v] = dx[j][v] = vfloat{};
                    }
                    if (keep) {
                        store(dscores + at, dx[j][v]);
                    }
                }
                store_row(x[j], weights + (i + j) * kTaskRows + column);
                store_row(dx[j], dweights + (i + j) * kTaskRows + column);
            }
#pragma GCC unroll 2
            for (int v = 0; v < kVecs; ++v) {
                store(dpairs + i / 2 * kLead + v * kLanes, pair_lanes(dx[0][v], dx[1][v]));
            }
        }
    }

    template <int kVecs>
    void write_dq(int i) {
        PairStrip& strip = strips[i];
        for (float& x : strip.delta) {
            x = p.scale;
        }
        const int64_t row = strip_row(strip_section(i), s), stride = p.heads * p.head_dim;
        store_columns<kVecs>(strip.dq_columns, strip.delta, strip.rows, p.head_dim,
                             static_cast<bfloat16*>(b.dq) + row * stride + head * p.head_dim,
                             stride);
    }

    Gradients to;
    // Of the block and a strip: [key][lane].
    alignas(64) float scores[kBlockKeys * kStripRows];
    alignas(64) float dscores[kBlockKeys * kStripRows];  // dP, then the gradient of scores
    alignas(64) float dpairs[kBlockPairs * kStripRows];  // that in pairs of keys
    // Of the block and the section: [key][row].
    alignas(64) bfloat16 weights[kBlockKeys * kTaskRows];
    alignas(64) bfloat16 dweights[kBlockKeys * kTaskRows];
};
#endif

}  // namespace
}  // namespace pylum::attention
