// A stable radix sort of 64-bit keys, deterministic and in memory of the caller's.
#pragma once

#include <cstdint>

struct CUstream_st;

namespace pylum::cuda {

constexpr int64_t kSortTile = 2048;  // keys of a block
constexpr int64_t kMostSortKeys = (int64_t{1} << 32) - 1;
constexpr int64_t sort_tiles(int64_t count) { return (count + kSortTile - 1) / kSortTile; }

// Words of workspace: two buffers of keys; uint32 counts of the 256 digits in each tile and in all.
constexpr int64_t sort_words(int64_t count) { return 2 * count + 128 * (sort_tiles(count) + 1); }

constexpr int bits_for(int64_t count) {
    int bits = 0;
    while (bits < 63 && (int64_t{1} << bits) < count) {
        ++bits;
    }
    return bits;
}

// Sorts the first `count` words, in the workspace `words`, by their bits [begin, end); returns
// where the sorted keys stand.
const uint64_t* launch_sort(uint64_t* words, int64_t count, int begin, int end,
                            CUstream_st* stream);

}  // namespace pylum::cuda
