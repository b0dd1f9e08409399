// The relative bias in the kernels of sm_90a. Gaps below 2^32 seconds are 32-bit: clocks are read
// relative to one row's of the tile, and where one lies further away the pairs of its block go by
// attention_bias.h, to the same bits. The block's producers bring its clocks and the window of the
// position table that a tile and a block of consecutive positions span.
#pragma once

#include "common/cuda/attention_bias.h"
#include "common/cuda/attention_producer_sm90.h"

namespace pylum::cuda::sm90 {

// Cells of gaps below 2^32, by the exponent and two bits of the gap as a float rounded down: gaps
// 0, 1, then four cells for each power of two from 2 on, of which 2 and 3 fill two.
constexpr int kNearCells = 129;

__device__ __forceinline__ int near_cell(uint32_t gap) {
    constexpr int kBeforeOne = 4 * 127 - 1;
    const int top = static_cast<int>(__float_as_uint(__uint2float_rz(gap)) >> 21);
    return max(top, kBeforeOne) - kBeforeOne;
}

__device__ __forceinline__ uint64_t least_near_gap(int cell) {
    const int power = (cell - 1) / 4;
    return cell == 0 ? 0 : (static_cast<uint64_t>(4 + (cell - 1) % 4) << power) / 4;
}

// As BiasCell, of gaps below 2^32: one threshold at most lies in a cell.
struct NearCells {
    uint32_t last[kNearCells];
    float bias[2 * kNearCells];  // up to `last`, above

    // By all threads of the block. True: a cell of the thread's holds several thresholds.
    __device__ __forceinline__ bool fill(const AttentionParams& p) {
        bool crowded = false;
        for (int i = static_cast<int>(threadIdx.x); i < kNearCells; i += kThreads) {
            const BiasCell cell =
                p.in.bias.times ? p.bias.cells[gap_cell(least_near_gap(i))] : BiasCell{0, 0, 0};
            last[i] = cell.last < UINT32_MAX ? static_cast<uint32_t>(cell.last) : UINT32_MAX;
            bias[2 * i] = cell.before;
            bias[2 * i + 1] = cell.from;
            crowded = crowded || __float_as_uint(cell.from) == kCrowded;
        }
        return crowded;
    }

    __device__ __forceinline__ float at(int row, int key) const {
        const uint32_t gap = static_cast<uint32_t>(abs(row - key));
        const int cell = near_cell(gap);
        return bias[2 * cell + (gap > last[cell] ? 1 : 0)];
    }
};

// A clock relative to another; false: too far away for gaps in 32 bits.
__device__ __forceinline__ bool near_time(int64_t time, int64_t base, int& near) {
    const uint64_t ahead = static_cast<uint64_t>(time) - static_cast<uint64_t>(base);
    near = static_cast<int>(ahead);
    return ahead + (uint64_t{1} << 30) < uint64_t{1} << 31;
}

// Clocks of the queries from `row` of the batch on; null without times.
__device__ __forceinline__ const int64_t* query_clocks(const AttentionParams& p, int64_t row) {
    return p.in.bias.times ? p.in.bias.query_times + row : nullptr;
}

// Of the block of rows in a stage.
struct BiasStage {
    static constexpr int kWindow = kGroups * kGroupRows + kBlockKeys - 1;

    alignas(8) int times[kBlockKeys];  // relative to the tile's base
    // The position table's entries for all distances between a row of the tile and one of the
    // block, upwards.
    float window[kWindow + 1];
    bool near;  // these hold what pairs need

    // By one warp, for a block of consecutive positions: `clocks` are those of its rows, the last
    // of which stands for those after it; `least` is the window's first distance.
    __device__ __forceinline__ void fill(const RelativeBias& b, const int64_t* clocks, int last,
                                         int64_t base, int least) {
        const int lane = static_cast<int>(threadIdx.x) % 32;
        bool all_near = true;
#pragma unroll
        for (int h = 0; h < 2; ++h) {
            int time = 0;
            if (clocks) {
                all_near = near_time(clocks[min(lane + 32 * h, last)], base, time) && all_near;
            }
            times[lane + 32 * h] = time;
        }
        all_near = __all_sync(~0u, all_near);
        if (lane == 0) {
            near = all_near;
        }
        for (int i = lane; i < kWindow; i += 32) {
            window[i] = b.positions ? b.positions[position_entry(b, least + i)] : 0.0f;
        }
    }
};

// What a tile's warpgroups share.
template <int kCount>
struct TileBias {
    static constexpr int kRows = kGroups * kGroupRows;

    NearCells cells;
    BiasStage stages[kCount];
    int64_t clocks[kRows];  // of the tile's rows; the first is what times are relative to
    bool near;              // all rows are near the first, and no cell is crowded

    // By all threads of the block, before its barrier: clocks of the tile's rows, null without
    // times. True: the tile is not near.
    __device__ __forceinline__ bool fill(const AttentionParams& p, const int64_t* times, int rows) {
        const int thread = static_cast<int>(threadIdx.x);
        bool far = false;
        if (thread < kRows) {
            const int64_t clock = times ? times[min(thread, rows - 1)] : 0;
            int time = 0;
            far = times && !near_time(clock, times[0], time);
            clocks[thread] = clock;
        }
        return cells.fill(p) || far;
    }

    __device__ __forceinline__ int near_clock(int row) const {
        return static_cast<int>(clocks[row] - clocks[0]);
    }

    // By one warp: keys from position `first`, for a tile of consecutive positions from `row`.
    __device__ __forceinline__ void bring_keys(const AttentionParams& p, const Sequence& s,
                                               int first, int row, int stage) {
        const int64_t* times = key_times(p, s, false);
        bring(p, times ? times + first : nullptr, static_cast<int>(s.history) - 1 - first,
              first - (row + kRows - 1), stage);
    }

    // Queries from position `first`, `count` of them, for a tile of keys from position `key`.
    __device__ __forceinline__ void bring_queries(const AttentionParams& p, int64_t first_row,
                                                  int first, int count, int key, int stage) {
        bring(p, query_clocks(p, first_row), count - 1, key - (first + kBlockKeys - 1), stage);
    }

  private:
    __device__ __forceinline__ void bring(const AttentionParams& p, const int64_t* times, int last,
                                          int least, int stage) {
        if (near) {
            stages[stage].fill(p.in.bias, times, last, clocks[0], least);
        } else if (threadIdx.x % 32 == 0) {
            stages[stage].near = false;
        }
    }
};

}  // namespace pylum::cuda::sm90
