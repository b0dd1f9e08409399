// The rows of attention's forward pass that a warp holds: 16 of a tile, two in each lane, in the
// layout of attention_tile.h. Turns scores of a block of keys into weights and keeps peaks and
// sums.
#pragma once

#include <type_traits>

#include "common/cuda/attention_bias.h"
#include "common/cuda/attention_mask.h"
#include "common/cuda/attention_sums.h"
#include "common/cuda/attention_tile.h"

namespace pylum::cuda {

// What every row of a tile needs, in shared memory.
struct ForwardShared {
    TileRows tile;
    Sequence sequence;
    Limits limits;
};

template <typename T, int kDim, bool kSilu, bool kBias>
class ForwardRows {
  public:
    static constexpr int kColumns = kDim / 8;     // fragments of the sums
    static constexpr int kKeys = kBlockKeys / 8;  // fragments of the weights
    // Sums of 256 columns leave few registers: what a block of keys needs of the rows stays in
    // shared memory.
    static constexpr bool kReads = kDim > 128;
    template <typename X>
    using Kept = std::conditional_t<kReads, const X&, X>;

    // Rows [warp_row, warp_row + 16) of the tile.
    __device__ __forceinline__ ForwardRows(const AttentionParams& params, const TileRows& rows,
                                           bool of_targets, int head_number, int row_of_warp)
        : p(params),
          tile(rows),
          targets(of_targets),
          head(head_number),
          warp_row(row_of_warp),
          s(params.batch.sequences[rows.sequence]),
          first_row(row_of(0)) {}
    // Where kReads; limits are known by take().
    __device__ __forceinline__ ForwardRows(const AttentionParams& params,
                                           const ForwardShared& shared, bool of_targets,
                                           int head_number, int row_of_warp)
        : limits(shared.limits),
          p(params),
          tile(shared.tile),
          targets(of_targets),
          head(head_number),
          warp_row(row_of_warp),
          s(shared.sequence),
          first_row(row_of(0)) {}

    __device__ __forceinline__ RowSpan span_of(int row) const {
        return targets ? target_row_span(p.batch, p.in.batch, s, tile.first + row)
                       : history_row_span(p.in.batch, s, tile.first + row);
    }

    // Takes the spans of the whole tile, which stand in shared memory.
    __device__ __forceinline__ void take(const RowSpan* spans) {
        shared_spans = spans;
        if constexpr (!kReads) {
            limits = tile_limits(spans, tile.rows, static_cast<int>(s.context));
        }
#pragma unroll
        for (int h = 0; h < 2; ++h) {
            const int row = warp_row + g() + 8 * h;
            if constexpr (!kReads) {
                begin[h] = spans[row].begin;
                end[h] = spans[row].end;
                position[h] = spans[row].position;
            }
            if constexpr (kBias) {
                time[h] = row < tile.rows ? row_time(p, first_row + row) : 0;
            }
        }
    }

    __device__ __forceinline__ void clear() {
#pragma unroll
        for (int n = 0; n < kColumns; ++n) {
#pragma unroll
            for (int i = 0; i < 4; ++i) {
                sums[n][i] = 0.0f;
            }
        }
#pragma unroll
        for (int h = 0; h < 2; ++h) {
            peak[h] = -INFINITY;
            weight[h] = 0.0f;
        }
    }

    // Products of queries and the block of keys from position `first` to weights, and older sums to
    // the new peak.
    __device__ __forceinline__ void weigh(int first) {
        if constexpr (kBias) {
            add_bias(first);
        }
        weigh_scores(first);
    }

    // The same where the bias has been added, if there is one.
    __device__ __forceinline__ void weigh_scores(int first) {
        const bool full = limits.full(first);
        const float scale = kSilu ? p.in.scale : p.in.scale * kLog2e;
#pragma unroll
        for (int n = 0; n < kKeys; ++n) {
#pragma unroll
            for (int i = 0; i < 4; ++i) {
                const bool seen = full || sees_key(i / 2, first + 8 * n + 2 * t() + i % 2);
                const float x = kBias ? weights[n][i] : weights[n][i] * scale;
                if constexpr (kSilu) {
                    weights[n][i] = seen ? silu<T>(x) : 0.0f;
                } else {
                    weights[n][i] = seen ? x : -INFINITY;
                }
            }
        }
        if constexpr (!kSilu) {
            soften();
        }
    }

    // Values of the block that take_broken() has taken.
    __device__ __forceinline__ void add_broken(const T* values, int64_t stride, int first,
                                               const unsigned* broken_keys, float (&line)[kDim]) {
        add_broken_rows(sums, weights, values, stride, p.in.value_dim, broken_keys, line,
                        [&](int h, int key) { return sees_key(h, first + key); });
    }

    // To the output; history rows have no other part.
    __device__ __forceinline__ void store() {
#pragma unroll
        for (int h = 0; h < 2; ++h) {
            const float total = quad_sum(weight[h]);
            const int in_tile = warp_row + g() + 8 * h;
            if (in_tile >= tile.rows) {
                continue;
            }
            const int64_t row = row_of(in_tile);
            const float factor = final_factor<kSilu>(p.in, row, head, peak[h], total, t() == 0);
            T* out = static_cast<T*>(p.in.out) + (row * p.in.heads + head) * p.in.value_dim;
            const int dim = static_cast<int>(p.in.value_dim);
#pragma unroll
            for (int n = 0; n < kColumns; ++n) {
                const int column = 8 * n + 2 * t();
                const float x = sums[n][2 * h] * factor, y = sums[n][2 * h + 1] * factor;
                if (column + 1 < dim && dim % 2 == 0) {
                    Pack<T, 2> pair;
                    pair.at[0] = from_float<T>(x);
                    pair.at[1] = from_float<T>(y);
                    store_pack<2>(out + column, pair);
                } else if (column < dim) {
                    out[column] = from_float<T>(x);
                    if (column + 1 < dim) {
                        out[column + 1] = from_float<T>(y);
                    }
                }
            }
        }
    }

    // To the rows' part number `slot`, after what it holds where `after` is set.
    __device__ __forceinline__ void save(int64_t slot, bool after) {
#pragma unroll
        for (int h = 0; h < 2; ++h) {
            const float total = quad_sum(weight[h]);
            const int in_tile = warp_row + g() + 8 * h;
            const bool mine = in_tile < tile.rows;
            const int dim = static_cast<int>(p.in.value_dim);
            float* part =
                part_of(p, slot, s.first_target + tile.first + (mine ? in_tile : 0), head);
            const Merge m = merge_factors<T, kSilu>(after && mine ? part[dim] : -INFINITY, peak[h]);
            __syncwarp();  // all have read the old peak
            if (!mine) {
                continue;
            }
#pragma unroll
            for (int n = 0; n < kColumns; ++n) {
#pragma unroll
                for (int e = 0; e < 2; ++e) {
                    const int column = 8 * n + 2 * t() + e;
                    if (column < dim) {
                        const float sum = sums[n][2 * h + e];
                        part[column] = after ? merged(m, part[column], sum) : sum;
                    }
                }
            }
            if (t() == 0) {
                part[dim + 1] = after ? merged(m, part[dim + 1], total) : total;
                part[dim] = after ? m.peak : peak[h];
            }
        }
    }

    __device__ __forceinline__ bool sees_key(int h, int key) const {
        if constexpr (kReads) {
            const RowSpan& span = shared_spans[warp_row + g() + 8 * h];
            return sees(span.begin, span.end, limits.context, key);
        } else {
            return sees(begin[h], end[h], limits.context, key);
        }
    }

    // Scores: scale * product + bias.
    __device__ __forceinline__ void add_bias(int first) {
        const int64_t* times = key_times(p, s, false);
        // Keys past the history are of no row: their clock is any.
        const int last = static_cast<int>(s.history) - 1;
#pragma unroll
        for (int n = 0; n < kKeys; ++n) {
#pragma unroll
            for (int e = 0; e < 2; ++e) {
                const int key = first + 8 * n + 2 * t() + e;
                const int64_t clock = times ? times[min(key, last)] : 0;
#pragma unroll
                for (int h = 0; h < 2; ++h) {
                    weights[n][2 * h + e] =
                        weights[n][2 * h + e] * p.in.scale +
                        pair_bias(p, key - position_of(h), time_gap(time[h], clock));
                }
            }
        }
    }

    Kept<Limits> limits;
    float sums[kColumns][4];
    float weights[kKeys][4];

  private:
    __device__ __forceinline__ static int g() { return static_cast<int>(threadIdx.x) % 32 / 4; }
    __device__ __forceinline__ static int t() { return static_cast<int>(threadIdx.x) % 4; }

    __device__ __forceinline__ int64_t row_of(int in_tile) const {
        return s.first_row + tile.first - s.cached + (targets ? s.history : 0) + in_tile;
    }

    __device__ __forceinline__ int position_of(int h) const {
        return kReads ? shared_spans[warp_row + g() + 8 * h].position : position[h];
    }

    // Scores in powers of two to weights below the new peak. A row that sees no key keeps its bits.
    __device__ __forceinline__ void soften() {
#pragma unroll
        for (int h = 0; h < 2; ++h) {
            float most = -INFINITY;
#pragma unroll
            for (int n = 0; n < kKeys; ++n) {
                most = fmaxf(most, fmaxf(weights[n][2 * h], weights[n][2 * h + 1]));
            }
            const float next = fmaxf(peak[h], quad_max(most));
            const float base = next == -INFINITY ? 0.0f : next;
            const float factor = exp2_of<T>(peak[h] - base);
            peak[h] = next;
            weight[h] *= factor;
#pragma unroll
            for (int n = 0; n < kKeys; ++n) {
#pragma unroll
                for (int e = 2 * h; e < 2 * h + 2; ++e) {
                    weights[n][e] = exp2_of<T>(weights[n][e] - base);
                    weight[h] += weights[n][e];
                }
            }
#pragma unroll
            for (int n = 0; n < kColumns; ++n) {
                sums[n][2 * h] *= factor;
                sums[n][2 * h + 1] *= factor;
            }
        }
    }

    const AttentionParams& p;
    const Kept<TileRows> tile;
    const bool targets;
    const int head, warp_row;

  public:
    const Sequence& s;
    const int64_t first_row;  // of q

  private:
    int begin[2], end[2];  // of the lane's two rows on the history
    const RowSpan* shared_spans;
    float peak[2], weight[2];  // weight: of the lane's columns
    int position[2];
    int64_t time[kBias ? 2 : 1];
};

}  // namespace pylum::cuda
