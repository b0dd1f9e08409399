// Which rows a tile holds and which keys each of them sees, from the batch on the device.
#pragma once

#include "common/cuda/attention.h"
#include "common/cuda/numeric.h"

namespace pylum::cuda {

// Consecutive rows of one sequence and one row class.
struct TileRows {
    int64_t sequence;
    int64_t first;  // position of the first history row, or its number within the targets
    int rows;       // 0: no such tile
};

// Tile `index` of the class, found in the cumulative counts.
__device__ inline TileRows find_tile(const DeviceBatch& b, int64_t index, bool targets,
                                     int tile_rows) {
    const int64_t* tiles = targets ? b.target_tiles : b.history_tiles;
    if (index >= tiles[b.batch]) {
        return {0, 0, 0};
    }
    int64_t low = 0, high = b.batch;
    while (high - low > 1) {
        const int64_t middle = (low + high) / 2;
        (tiles[middle] <= index ? low : high) = middle;
    }
    const Sequence& s = b.sequences[low];
    // The last history rows see the most keys: they go first.
    const int64_t count = tiles[low + 1] - tiles[low];
    const int64_t at = targets ? index - tiles[low] : count - 1 - (index - tiles[low]);
    const int64_t begin = at * tile_rows, all = targets ? s.targets : s.history - s.cached;
    const int64_t left = all - begin;
    return {low, begin + (targets ? 0 : s.cached),
            static_cast<int>(left < tile_rows ? left : tile_rows)};
}

// What one row sees: history in [begin, end) and [0, context), and targets of its own group,
// numbered within the sequence, in [group_begin, group_end).
struct RowSpan {
    int begin, end, group_begin, group_end;
    int position;
    bool known;  // false: the mask contradicts the batch, the row becomes NaN
};

__device__ inline RowSpan history_row_span(const Batch& b, const Sequence& s, int64_t position) {
    if (position < s.context) {
        return {0, static_cast<int>(s.context), 0, 0, static_cast<int>(position), true};
    }
    const bool spared = b.window == 0 || position >= s.history - b.min_full;
    const int64_t begin = spared ? 0 : position + 1 - b.window;
    return {static_cast<int>(begin < 0 ? 0 : begin),
            static_cast<int>(position + 1),
            0,
            0,
            static_cast<int>(position),
            true};
}

// Target `i` of the sequence.
__device__ inline RowSpan target_row_span(const DeviceBatch& d, const Batch& b, const Sequence& s,
                                          int64_t i) {
    const int64_t number = s.first_target + i;
    int64_t group = number;
    if (d.group_offsets) {
        // The last group that begins at or before the target.
        int64_t low = 0, high = d.groups;
        while (high - low > 1) {
            const int64_t middle = (low + high) / 2;
            (d.group_offsets[middle] <= number ? low : high) = middle;
        }
        group = d.groups > 0 ? d.group_offsets[low] : -1;
    }
    int64_t seen = s.history;
    bool known = group >= s.first_target && group <= number;
    if (d.visible) {
        const int64_t visible = number < d.visible_targets ? d.visible[number] : -1;
        known = known && visible >= 0 && visible <= s.history - s.context;
        seen = s.context + visible;
    }
    if (!known) {
        return {0, 0, 0, 0, 0, false};
    }
    const bool spared = b.window == 0 || b.min_full > 0;
    const int64_t begin = spared ? 0 : seen + number - group + 1 - b.window;
    const int64_t own = spared ? group : number + 1 - b.window;
    return {static_cast<int>(begin < 0 ? 0 : begin),
            static_cast<int>(seen),
            static_cast<int>((own < group ? group : own) - s.first_target),
            static_cast<int>(i + 1),
            static_cast<int>(seen + number - group),
            true};
}

// Over the rows of a tile.
struct Limits {
    int least_begin, most_begin, least_end, most_end;
    int context;

    // Past the last key of the history that any row sees.
    __device__ int keys() const { return most_end > context ? most_end : context; }
    // The first block at or after `first` that some row sees.
    __device__ int next(int first) const {
        const int near = least_begin / kBlockKeys * kBlockKeys;
        return first >= context && first < near ? near : first;
    }
    // Some row sees a key of [first, first + count).
    __device__ bool meet(int first, int count) const {
        return (most_end > first && least_begin < first + count) ||
               (first < context && most_end > 0);
    }
    // Every row sees all of [first, first + count).
    __device__ bool full(int first, int count = kBlockKeys) const {
        const int stop = first + count;
        return (stop <= context && least_end > 0) || (most_begin <= first && stop <= least_end);
    }
};

__device__ inline Limits no_limits(int context) { return {INT32_MAX, 0, INT32_MAX, 0, context}; }

__device__ inline void add_row(Limits& limits, const RowSpan& span) {
    limits.least_begin = min(limits.least_begin, span.begin);
    limits.most_begin = max(limits.most_begin, span.begin);
    limits.least_end = min(limits.least_end, span.end);
    limits.most_end = max(limits.most_end, span.end);
}

// Of all lanes of the warp.
__device__ inline Limits over_lanes(Limits x) {
#pragma unroll
    for (int step = 1; step < 32; step *= 2) {
        x.least_begin = min(x.least_begin, __shfl_xor_sync(~0u, x.least_begin, step));
        x.most_begin = max(x.most_begin, __shfl_xor_sync(~0u, x.most_begin, step));
        x.least_end = min(x.least_end, __shfl_xor_sync(~0u, x.least_end, step));
        x.most_end = max(x.most_end, __shfl_xor_sync(~0u, x.most_end, step));
    }
    return x;
}

// By every warp for itself, of the spans in shared memory.
__device__ inline Limits tile_limits(const RowSpan* spans, int rows, int context) {
    Limits limits = no_limits(context);
    for (int r = static_cast<int>(threadIdx.x) % 32; r < rows; r += 32) {
        add_row(limits, spans[r]);
    }
    return over_lanes(limits);
}

__device__ inline bool sees(int begin, int end, int context, int key) {
    return (key >= begin && key < end) || (key < context && end > 0);
}

}  // namespace pylum::cuda
