// What a section of the backward pass on bfloat16 pairs reads: its rows, and the keys and values of
// one block after another, packed as the products take them. Rows far apart in memory are asked for
// ahead of their use.
#pragma once

#include "attention/cpu/gradients.h"
#include "common/cpu/attention_bias.h"
#include "common/cpu/attention_tiles.h"

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

class PairRows {
  public:
    PairRows(const BackwardParams& params, int64_t sequence, int64_t key_head)
        : b(params), p(params.in), s(params.in.batch.sequences[sequence]), kv_head(key_head) {}

  protected:
    static constexpr bool kTiles = BlockOf<bfloat16>::kTiles;

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
        key_columns = {k_pairs, p.head_dim, size};
#endif
        keys_checked = false;
    }

    bool keys_finite() {
        if (!keys_checked) {
            keys_are_finite = all_finite(key_columns, block_keys, p.head_dim);
            keys_checked = true;
        }
        return keys_are_finite;
    }

    const BackwardParams& b;
    const AttentionInputs& p;
    const Sequence& s;
    const int64_t kv_head;
    Section section;
    int64_t head;
    int count;         // of strips
    bool rows_finite;  // of q and dout
    int prefetched;    // rows of the next section
    PairStrip strips[kTaskRows / kStripRows];
    alignas(64) uint32_t q_pairs[kTaskRows / 2 * kMaxDim];  // [pair of rows][padded dim]
    alignas(64) uint32_t dout_pairs[kTaskRows / 2 * kMaxDim];
    // Of the block: keys and values as rows, keys in pairs.
    BlockOf<bfloat16>::Keys keys, values;
    BlockOf<bfloat16>::Values key_columns;  // in k_pairs
    int block_keys;
    bool keys_checked, keys_are_finite;
#ifdef PYLUM_TILES
    alignas(64) bfloat16 k_rows[kBlockKeys * kMaxDim];
    alignas(64) bfloat16 v_rows[kBlockKeys * kMaxDim];
#else
    alignas(64) uint32_t k_rows[kBlockPairs * kMaxDim];
    alignas(64) uint32_t v_rows[kBlockPairs * kMaxDim];
#endif
    alignas(64) uint32_t k_pairs[kBlockPairs * kMaxDim];
};
#endif

}  // namespace
}  // namespace pylum::attention
