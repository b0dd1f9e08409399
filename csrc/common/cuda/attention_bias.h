// The relative bias of one pair of row and key. Of a pair of one row a lane reads one float of the
// position table and one cell of 16 bytes, both from the first-level cache: the tables are small
// and the lanes' entries lie together.
#pragma once

#include "common/cuda/attention.h"
#include "common/cuda/numeric.h"

namespace pylum::cuda {

// Entry of the position table for a key this far after the row; distances beyond the table read
// its ends.
__device__ __forceinline__ int position_entry(const RelativeBias& b, int distance) {
    const int most = static_cast<int>(b.length) - 1;
    return max(-most, min(most, distance)) + most;
}

// Stands for `from` in a cell that holds several thresholds: their buckets are searched.
constexpr uint32_t kCrowded = 0x7fc0c0deu;

__device__ __forceinline__ float time_bias(const AttentionParams& p, uint64_t gap) {
    const BiasCell cell = p.bias.cells[gap_cell(gap)];
    const float bias = gap > cell.last ? cell.from : cell.before;
    return __float_as_uint(bias) != kCrowded ? bias : p.in.bias.times[gap_bucket(p.in.bias, gap)];
}

// The clocks of the keys of one history, or of one sequence's targets.
__device__ __forceinline__ const int64_t* key_times(const AttentionParams& p, const Sequence& s,
                                                    bool targets) {
    return p.in.bias.times ? p.in.bias.timestamps + s.first_key + (targets ? s.history : 0)
                           : nullptr;
}

__device__ __forceinline__ int64_t row_time(const AttentionParams& p, int64_t row) {
    return p.in.bias.times ? p.in.bias.query_times[row] : 0;
}

// `gap` is read only where there are times.
__device__ __forceinline__ float pair_bias(const AttentionParams& p, int distance, uint64_t gap) {
    const RelativeBias& b = p.in.bias;
    float bias = b.positions ? b.positions[position_entry(b, distance)] : 0.0f;
    if (b.times) {
        bias += time_bias(p, gap);
    }
    return bias;
}

}  // namespace pylum::cuda
