// HSTU's relative bias (arXiv 2402.17152, section 3.2): what a pair of row and key adds to
// scale * q.k before SiLU, the same for every head.
#pragma once

#include <cstdint>

#ifdef __CUDACC__
#define PYLUM_HOST_DEVICE __host__ __device__
#else
#define PYLUM_HOST_DEVICE
#endif

namespace pylum {

// A gap's cell: itself below 4, then four cells for each power of two. Found with a few integer
// operations, where a search among the thresholds would take seven dependent steps.
constexpr int kGapCells = 252;

struct GapCell {
    uint64_t last;   // the last gap before the next threshold
    int64_t bucket;  // of the cell's least gap
};

// positions[key's position - row's position + length - 1] + times[bucket of
// |query_times[row] - timestamps[key]|]. Distances beyond the table read its last entry.
struct RelativeBias {
    const float* positions;      // [2 * length - 1], or null
    int64_t length;              // 0 without positions
    const float* times;          // [buckets + 1], or null
    const int64_t* thresholds;   // [buckets] ascending: a bucket counts those up to the gap
    int64_t buckets;             // 0 without times
    const GapCell* cells;        // [kGapCells]
    const int64_t* timestamps;   // of the keys: per sequence its history, cached too, then targets
    const int64_t* query_times;  // [rows]

    PYLUM_HOST_DEVICE bool given() const { return positions || times; }
};

// Copies of the tables' gradients, each the sum of some sequences. Their number is a constant, so
// that the order of all sums depends on the batch alone, not on threads.
constexpr int64_t kBiasCopies = 64;

namespace {

// Of both tables.
PYLUM_HOST_DEVICE inline int64_t bias_entries(const RelativeBias& b) {
    return (b.positions ? 2 * b.length - 1 : 0) + (b.times ? b.buckets + 1 : 0);
}

PYLUM_HOST_DEVICE inline uint64_t time_gap(int64_t a, int64_t b) {
    return a > b ? static_cast<uint64_t>(a) - static_cast<uint64_t>(b)
                 : static_cast<uint64_t>(b) - static_cast<uint64_t>(a);
}

PYLUM_HOST_DEVICE inline int gap_cell(uint64_t gap) {
    if (gap < 4) {
        return static_cast<int>(gap);
    }
    const int top = 63 - __builtin_clzll(gap);
    return 4 * (top - 1) + static_cast<int>(gap >> (top - 2) & 3);
}

PYLUM_HOST_DEVICE inline uint64_t least_gap(int cell) {
    return cell < 4 ? static_cast<uint64_t>(cell)
                    : static_cast<uint64_t>(4 + cell % 4) << (cell / 4 - 1);
}

PYLUM_HOST_DEVICE inline int64_t gap_bucket(const RelativeBias& b, uint64_t gap) {
    const GapCell cell = b.cells[gap_cell(gap)];
    // Most cells hold one threshold at most, and which side of it a gap lies on is hard to predict.
    int64_t bucket = cell.bucket + (gap > cell.last);
    while (bucket < b.buckets && static_cast<uint64_t>(b.thresholds[bucket]) <= gap) {
        ++bucket;
    }
    return bucket;
}

}  // namespace

}  // namespace pylum
