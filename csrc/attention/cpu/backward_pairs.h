// The backward pass on AVX512-BF16 and AMX, all five products of bfloat16 pairs: of consecutive
// depth in scores and dP, of consecutive keys in dq, of consecutive rows in dk and dv. Weights and
// the gradients of scores are rounded to bfloat16, sums are float32.
//
// A section of up to 128 rows of one head goes through the keys block by block: what is packed of a
// block serves all its strips, and dk and dv of the block are read and written once.
#pragma once

#include "attention/cpu/gradients.h"
#include "attention/cpu/outer_tiles.h"
#include "common/cpu/attention_bias.h"
#include "common/cpu/coarse.h"

namespace pylum::attention {
namespace {

#ifdef __AVX512BF16__

struct PairStrip {
    int rows;
    Spans spans;  // on the history
    BiasRows bias;
    alignas(64) float q_columns[kMaxDim / 2 * kStripRows];  // pairs, transposed
    alignas(64) float dout_columns[kMaxDim / 2 * kStripRows];
    alignas(64) float dq_columns[kMaxDim * kStripRows];
    alignas(64) float lse[kStripRows];    // in powers of two; SiLU: the score scale
    alignas(64) float delta[kStripRows];  // sum of out * dout

    bool narrow() const { return rows <= 16; }
};

class PairSection {
    static constexpr bool kTiles = BlockOf<bfloat16>::kTiles;

  public:
    PairSection(const BackwardParams& params, int64_t sequence, int64_t head)
        : b(params), p(params.in), s(params.in.batch.sequences[sequence]), kv_head(head) {}

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
    static int block_size(int64_t left) {
        return static_cast<int>(left < kBlockKeys ? left : kBlockKeys);
    }

    Section strip_section(int i) const {
        Section strip = section;
        strip.first += i * kStripRows;
        strip.rows = strips[i].rows;
        return strip;
    }

    const bfloat16* q_of(int64_t row) const {
        return static_cast<const bfloat16*>(p.q) + row * p.q_row + head * p.q_head;
    }
    const bfloat16* dout_of(int64_t row) const {
        return static_cast<const bfloat16*>(b.dout) + row * b.dout_row + head * b.dout_head;
    }

    // Rows in pairs, zero past dim and past the last row.
    void pack_rows(const bfloat16* rows, int64_t stride, int64_t dim, uint32_t* out) const {
        const int64_t pad = padded(dim);
        for (int i = 0; i < section.rows; i += 2) {
            const bfloat16* row = rows + i * stride;
            uint32_t* pair = out + i / 2 * pad;
            pack_pair(row, i + 1 < section.rows ? row + stride : nullptr, dim, pair);
            memset(pair + dim, 0, sizeof(uint32_t) * (pad - dim));
        }
        if (kTiles) {
            const int pairs = (section.rows + 1) / 2, all = (section.rows + 31) / 32 * 16;
            memset(out + pairs * pad, 0, sizeof(uint32_t) * (all - pairs) * pad);
        }
    }

    void load_rows() {
        const int64_t first = strip_row(section, s);
        pack_rows(q_of(first), p.q_row, p.head_dim, q_pairs);
        pack_rows(dout_of(first), b.dout_row, p.value_dim, dout_pairs);
        rows_finite = all_finite(PairValues{q_pairs, padded(p.head_dim), section.rows},
                                 section.rows, p.head_dim) &&
                      all_finite(PairValues{dout_pairs, padded(p.value_dim), section.rows},
                                 section.rows, p.value_dim);
        count = (section.rows + kStripRows - 1) / kStripRows;
        for (int i = 0; i < count; ++i) {
            const int left = section.rows - i * kStripRows;
            strips[i].rows = left < kStripRows ? left : kStripRows;
            strips[i].narrow() ? load_strip<1>(i) : load_strip<2>(i);
        }
    }

    template <int kVecs>
    void load_strip(int i) {
        PairStrip& strip = strips[i];
        const Section part = strip_section(i);
        const int64_t row = strip_row(part, s);
        strip.spans = history_spans(p.batch, part, s);
        if (p.bias.given()) {
            strip.bias = bias_rows(p, part, s, row);
        }
        load_pair_columns<kVecs>(q_of(row), p.q_row, part.rows, p.head_dim, strip.q_columns);
        load_pair_columns<kVecs>(dout_of(row), b.dout_row, part.rows, p.value_dim,
                                 strip.dout_columns);
        memset(strip.dq_columns, 0, sizeof(float) * p.head_dim * kVecs * kLanes);
        const int64_t stride = p.heads * p.value_dim;
        const bfloat16* out =
            static_cast<const bfloat16*>(p.out) + row * stride + head * p.value_dim;
        for (int r = 0; r < kVecs * kLanes; ++r) {
            strip.lse[r] = strip.delta[r] = 0.0f;
            if (r >= part.rows) {
                continue;
            }
            if (p.silu) {
                strip.lse[r] = p.score_scales ? p.score_scales[row + r] : p.score_scale;
                continue;
            }
            strip.lse[r] = p.lse[(row + r) * p.heads + head] * kLog2e;
            const bfloat16* dout = dout_of(row + r);
            vfloat total{};
            for_vectors(p.value_dim, [&](int64_t d, int n) {
                total += load_lanes(out + r * stride + d, n) * load_lanes(dout + d, n);
            });
            strip.delta[r] = sum(total);
        }
    }

    // Asks for half of the rows that the thread's next section will read.
    void prefetch_next() {
        const int64_t group = p.heads / p.kv_heads, end = s.first_row + s.history + s.targets;
        int64_t row = strip_row(section, s), next_head = head + 1;
        if (next_head % group == 0 && row + section.rows < end) {
            row += section.rows;
            next_head -= group;
        } else if (next_head % group == 0) {
            row = s.first_row;
        }
        if (next_head == p.heads) {
            return;
        }
        row += prefetched;
        prefetched += kTaskRows / 2;
        const int64_t rows = end - row < kTaskRows / 2 ? end - row : kTaskRows / 2;
        const int64_t stride = p.heads * p.value_dim;
        prefetch_rows(q_of(row) + (next_head - head) * p.q_head, p.q_row, rows, p.head_dim);
        prefetch_rows(dout_of(row) + (next_head - head) * b.dout_head, b.dout_row, rows,
                      p.value_dim);
        prefetch_rows(static_cast<const bfloat16*>(p.out) + row * stride + next_head * p.value_dim,
                      stride, rows, p.value_dim);
    }

    // Keys and values of the history, or targets of the sequence, from number `first` on.
    void load_block(int64_t first, int size, bool targets) {
        const int64_t at = targets ? s.history + first : first;
        block_keys = size;
        const int64_t row = s.first_row + at, left = s.history + s.targets - at - size;
        const bfloat16* k = static_cast<const bfloat16*>(p.k) + row * p.k_row + kv_head * p.k_head;
        const bfloat16* v = static_cast<const bfloat16*>(p.v) + row * p.v_row + kv_head * p.v_head;
        prefetch_rows(k + size * p.k_row, p.k_row, block_size(left), p.head_dim);
        prefetch_rows(v + size * p.v_row, p.v_row, block_size(left), p.value_dim);
#ifdef PYLUM_TILES
        keys = key_tiles(k, p.k_row, size, p.head_dim, k_rows);
        values = key_tiles(v, p.v_row, size, p.value_dim, v_rows);
        key_columns =
            value_tiles(k, p.k_row, size, p.head_dim, reinterpret_cast<bfloat16*>(k_pairs));
#else
        keys = pair_keys(k, p.k_row, size, p.head_dim, k_rows);
        values = pair_keys(v, p.v_row, size, p.value_dim, v_rows);
        pack_values(keys.data, keys.row, size, p.head_dim, k_pairs);
        keys_checked = false;
#endif
    }

    bool keys_finite() {
#ifdef PYLUM_TILES
        return key_columns.finite;
#else
        if (!keys_checked) {
            keys_are_finite =
                all_finite(PairValues{k_pairs, p.head_dim, block_keys}, block_keys, p.head_dim);
            keys_checked = true;
        }
        return keys_are_finite;
#endif
    }

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
            add_dq<kVecs>(strip, size);
        } else {
            add_dq_seen<kVecs>(strip, size, first, spans);
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
    __attribute__((noinline)) void add_dq(PairStrip& strip, int size) {
#ifdef PYLUM_TILES
        add_products<kVecs>(key_columns, size, dpairs, p.head_dim, strip.dq_columns);
#else
        constexpr int kLead = kVecs * kLanes;
        const int pairs = (size + 1) / 2;
        int64_t d = 0;
        for (; d + kTile <= p.head_dim; d += kTile) {
            weighted_tile<kVecs, kTile>(k_pairs + d, p.head_dim, pairs, dpairs, nullptr,
                                        strip.dq_columns + d * kLead);
        }
        for (; d < p.head_dim; ++d) {
            weighted_tile<kVecs, 1>(k_pairs + d, p.head_dim, pairs, dpairs, nullptr,
                                    strip.dq_columns + d * kLead);
        }
#endif
    }

    // The same where a key may hold NaN or infinity: lanes that do not see it take it for zero.
    template <int kVecs>
    __attribute__((noinline)) void add_dq_seen(PairStrip& strip, int size, int64_t first,
                                               const Spans& spans) {
#ifdef PYLUM_TILES
        add_seen_products<kVecs>(key_columns, size, first, spans, dpairs, p.head_dim,
                                 strip.dq_columns);
#else
        constexpr int kLead = kVecs * kLanes;
        for (int i = 0; i < size; i += 2) {
            for (int v = 0; v < kVecs; ++v) {
                const vint partner = i + 1 < size ? spans.sees(v, first + i + 1) : vint{};
                const vint kept = (spans.sees(v, first + i) & 0xffff) | (partner & ~0xffff);
                const vfloat weight = load(dpairs + i / 2 * kLead + v * kLanes);
                for (int64_t d = 0; d < p.head_dim; ++d) {
                    const vint pair = (vint)pair_of(k_pairs + i / 2 * p.head_dim + d) & kept;
                    float* at = strip.dq_columns + d * kLead + v * kLanes;
                    store(at, add_pairs(load(at), (__m512bh)pair, weight));
                }
            }
        }
#endif
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

    const BackwardParams& b;
    const AttentionInputs& p;
    const Sequence& s;
    const int64_t kv_head;
    Section section;
    int64_t head;
    Gradients to;
    int count;         // of strips
    bool rows_finite;  // of q and dout
    int prefetched;    // rows of the next section
    PairStrip strips[kTaskRows / kStripRows];
    alignas(64) uint32_t q_pairs[kTaskRows / 2 * kMaxDim];  // [pair of rows][padded dim]
    alignas(64) uint32_t dout_pairs[kTaskRows / 2 * kMaxDim];
    // Of the block: keys and values as rows, keys in pairs.
    BlockOf<bfloat16>::Keys keys, values;
    int block_keys;
#ifdef PYLUM_TILES
    TileValues key_columns;  // in k_pairs
#else
    bool keys_checked, keys_are_finite;
#endif
#ifdef PYLUM_TILES
    alignas(64) bfloat16 k_rows[kBlockKeys * kMaxDim];
    alignas(64) bfloat16 v_rows[kBlockKeys * kMaxDim];
#else
    alignas(64) uint32_t k_rows[kBlockPairs * kMaxDim];
    alignas(64) uint32_t v_rows[kBlockPairs * kMaxDim];
#endif
    alignas(64) uint32_t k_pairs[kBlockPairs * kMaxDim];
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
