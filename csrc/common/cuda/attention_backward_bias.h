// Gradients of the bias's tables. Their sums are in fixed point: integers, so the order in which
// blocks add to memory is free and results reproduce. The pairs of a tile are summed in float32 in
// a fixed order first, about 32 of them for each addition to memory.
#pragma once

#include "common/cuda/attention_bias.h"
#include "common/cuda/attention_mask.h"

namespace pylum::cuda {

// Whole bits of a number below 2^bits.
__device__ __forceinline__ int bits_of(int64_t x) { return x > 0 ? 64 - __clzll(x) : 0; }

// Units in 1.0: a power of two such that no sum overflows, though every pair be of the largest
// gradient, 1.1 * level * (dout . v).
__device__ __forceinline__ float bias_scale(const AttentionGradients& p) {
    const BiasRange& r = *p.bias_range;
    const AttentionInputs& in = p.inputs.in;
    const auto bits = [](uint32_t x) { return static_cast<int>(x >> 23) - 126; };
    const int largest = bits(r.dout) + bits(r.v) + bits(r.level) + bits_of(in.value_dim) + 1;
    const int pairs = bits_of(p.inputs.batch.rows) + bits_of(r.keys) + bits_of(in.heads);
    const int exponent = max(-126, min(126, 62 - largest - pairs));
    return __uint_as_float(static_cast<uint32_t>(exponent + 127) << 23);
}

__device__ __forceinline__ void add_to_table(const AttentionGradients& p, int64_t entry, float x,
                                             float scale) {
    if ((__float_as_uint(x) & 0x7f800000u) == 0x7f800000u) {
        atomicOr(&p.bias_range->broken, 1u);
    } else if (x != 0.0f) {
        atomicAdd(reinterpret_cast<unsigned long long*>(p.bias_sums + entry),
                  static_cast<unsigned long long>(__float2ll_rn(x * scale)));
    }
}

__device__ __forceinline__ void add_pair_to_tables(const AttentionGradients& p, int distance,
                                                   uint64_t gap, float x, float scale) {
    const RelativeBias& b = p.inputs.in.bias;
    if (b.positions) {
        add_to_table(p, position_entry(b, distance), x, scale);
    }
    if (b.times) {
        add_to_table(p, (b.positions ? 2 * b.length - 1 : 0) + gap_bucket(b, gap), x, scale);
    }
}

// The gradients of one tile of queries' scores with one block of keys, zero where unseen.
template <int kRows, int kKeys>
struct PairGradients {
    float at[kRows][kKeys + 1];

    // A warp's fragments.
    __device__ __forceinline__ void take(const float (&x)[kKeys / 8][4], int warp_row) {
        const int g = static_cast<int>(threadIdx.x) % 32 / 4, t = static_cast<int>(threadIdx.x) % 4;
#pragma unroll
        for (int n = 0; n < kKeys / 8; ++n) {
#pragma unroll
            for (int i = 0; i < 4; ++i) {
                at[warp_row + g + i / 2 * 8][8 * n + 2 * t + i % 2] = x[n][i];
            }
        }
    }

    // Of keys [first, first + count) of the history, by `threads` threads, whole warps.
    __device__ __forceinline__ void add(const AttentionGradients& p, const Sequence& s,
                                        const RowSpan* spans, const int64_t* times, int rows,
                                        int first, int count, int thread, int threads) const {
        const float scale = bias_scale(p);
        if (p.inputs.in.bias.positions) {
            add_positions(p, spans, rows, first, count, scale, thread, threads);
        }
        if (p.inputs.in.bias.times) {
            add_times(p, key_times(p.inputs, s, false) + first, times, rows, count, scale, thread,
                      threads);
        }
    }

  private:
    // A thread for each distance; those beyond the table once more for each row.
    __device__ __forceinline__ void add_positions(const AttentionGradients& p, const RowSpan* spans,
                                                  int rows, int first, int count, float scale,
                                                  int thread, int threads) const {
        const int last = 2 * static_cast<int>(p.inputs.in.bias.length) - 2, most = last / 2;
        int least = INT32_MAX, latest = 0;
        for (int r = thread % 32; r < rows; r += 32) {
            least = min(least, spans[r].position);
            latest = max(latest, spans[r].position);
        }
#pragma unroll
        for (int step = 1; step < 32; step *= 2) {
            least = min(least, __shfl_xor_sync(~0u, least, step));
            latest = max(latest, __shfl_xor_sync(~0u, latest, step));
        }
        const int low = max(first - latest, -most), high = min(first + count - 1 - least, most);
#pragma unroll 1
        for (int distance = low + thread; distance <= high; distance += threads) {
            float sum = 0.0f;
            for (int r = 0; r < rows; ++r) {
                const int key = spans[r].position + distance - first;
                sum += key >= 0 && key < count ? at[r][key] : 0.0f;
            }
            add_to_table(p, distance + most, sum, scale);
        }
        if (first - latest >= -most && first + count - 1 - least <= most) {
            return;
        }
        for (int r = thread; r < rows; r += threads) {
            float before = 0.0f, after = 0.0f;
            for (int key = 0; key < count; ++key) {
                const int distance = first + key - spans[r].position;
                before += distance < -most ? at[r][key] : 0.0f;
                after += distance > most ? at[r][key] : 0.0f;
            }
            add_to_table(p, 0, before, scale);
            add_to_table(p, last, after, scale);
        }
    }

    // Two lanes for each row, half of its keys each: keys of one bucket lie together, so that a
    // lane adds once for each bucket it meets.
    __device__ __forceinline__ void add_times(const AttentionGradients& p, const int64_t* key_time,
                                              const int64_t* times, int rows, int count,
                                              float scale, int thread, int threads) const {
        const RelativeBias& b = p.inputs.in.bias;
        const int64_t entry = b.positions ? 2 * b.length - 1 : 0;
#pragma unroll 1
        for (int i = thread; i < 2 * rows; i += threads) {
            const int r = i / 2, begin = i % 2 * (kKeys / 2);
            const int end = min(count, begin + kKeys / 2);
            int64_t bucket = 0;
            float sum = 0.0f;
            for (int key = begin; key < end; ++key) {
                const int64_t next = gap_bucket(b, time_gap(times[r], key_time[key]));
                if (next != bucket) {
                    add_to_table(p, entry + bucket, sum, scale);
                    bucket = next;
                    sum = 0.0f;
                }
                sum += at[r][key];
            }
            add_to_table(p, entry + bucket, sum, scale);
        }
    }
};

}  // namespace pylum::cuda
