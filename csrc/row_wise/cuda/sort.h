// Lookups of all uses as one sorted array of (row, gradient row): a stable LSD radix sort, three
// launches a digit. Each reads the keys once and the last writes them once: bound by memory.
#pragma once

#include "common/cuda/launch.h"
#include "common/cuda/numeric.h"
#include "common/cuda/shared.h"
#include "row_wise/row_wise.h"

namespace pylum::row_wise {
namespace {

using namespace cuda;

constexpr int kThreads = 256;
constexpr int kWarp = 32;
constexpr int kWarps = kThreads / kWarp;
constexpr int kDigits = 256;  // values of the 8 bits of a pass
constexpr int kWarpKeys = static_cast<int>(kSortTile) / kWarps;
static_assert(kDigits == kThreads);

struct Keys {
    const uint64_t* from;  // row << shift | gradient row, counted over all uses
    uint64_t* to;
    uint32_t* counts;  // [kDigits, tiles], then [kDigits] sums over the tiles
    int64_t lookups, tiles;
    int shift;
};

struct SortSpace {
    uint32_t at[kWarps][kDigits];  // keys of each digit that a warp met, then where its next goes
    uint32_t sums[kWarps];
};

__device__ inline int digit_of(uint64_t key, int shift) {
    return static_cast<int>(key >> shift) & (kDigits - 1);
}

// Lanes of the warp that take part and have the same digit.
__device__ inline uint32_t peers_of(int digit, bool takes_part) {
    uint32_t peers = __ballot_sync(~0u, takes_part);
#pragma unroll
    for (int bit = 0; bit < 8; ++bit) {
        const bool set = (digit >> bit & 1) != 0;
        const uint32_t votes = __ballot_sync(~0u, set);
        peers &= set ? votes : ~votes;
    }
    return peers;
}

// Exclusive sum over the block's threads, in their order; `total` is that of all.
__device__ inline uint32_t sum_before(uint32_t value, uint32_t (&sums)[kWarps], uint32_t& total) {
    const int lane = static_cast<int>(threadIdx.x) % kWarp;
    const int warp = static_cast<int>(threadIdx.x) / kWarp;
    uint32_t inclusive = value;
#pragma unroll
    for (int step = 1; step < kWarp; step *= 2) {
        const uint32_t other = __shfl_up_sync(~0u, inclusive, step);
        inclusive += lane >= step ? other : 0;
    }
    __syncthreads();
    if (lane == kWarp - 1) {
        sums[warp] = inclusive;
    }
    __syncthreads();
    uint32_t before = 0;
    total = 0;
#pragma unroll
    for (int w = 0; w < kWarps; ++w) {
        before += w < warp ? sums[w] : 0;
        total += sums[w];
    }
    return before + inclusive - value;
}

// Every warp counts the digits of its own keys: no two threads of a block add to one counter.
__device__ inline void count_digits(const Keys& k, int64_t tile, SortSpace& space) {
    const int lane = static_cast<int>(threadIdx.x) % kWarp;
    const int warp = static_cast<int>(threadIdx.x) / kWarp;
    for (int i = lane; i < kDigits; i += kWarp) {
        space.at[warp][i] = 0;
    }
    __syncwarp();
    const int64_t first = tile * kSortTile + warp * kWarpKeys;
    for (int i = lane; i < kWarpKeys; i += kWarp) {
        const bool here = first + i < k.lookups;
        const int digit = here ? digit_of(k.from[first + i], k.shift) : 0;
        const uint32_t peers = peers_of(digit, here);
        if (here && __ffs(static_cast<int>(peers)) - 1 == lane) {
            space.at[warp][digit] += static_cast<uint32_t>(__popc(peers));
        }
        __syncwarp();
    }
}

__global__ void __launch_bounds__(kThreads) count_kernel(const Keys k) {
    PYLUM_SHARED(SortSpace, space);
    const int64_t tile = blockIdx.x;
    count_digits(k, tile, space);
    __syncthreads();
    uint32_t count = 0;
#pragma unroll
    for (int w = 0; w < kWarps; ++w) {
        count += space.at[w][threadIdx.x];
    }
    k.counts[threadIdx.x * k.tiles + tile] = count;
}

// One block per digit: its counts become the keys of that digit in the tiles before.
__global__ void __launch_bounds__(kThreads) scan_kernel(const Keys k) {
    PYLUM_SHARED(SortSpace, space);
    uint32_t* counts = k.counts + blockIdx.x * k.tiles;
    uint32_t carry = 0;
    for (int64_t first = 0; first < k.tiles; first += kThreads) {
        const int64_t at = first + threadIdx.x;
        const uint32_t count = at < k.tiles ? counts[at] : 0;
        uint32_t total;
        const uint32_t before = sum_before(count, space.sums, total);
        if (at < k.tiles) {
            counts[at] = carry + before;
        }
        carry += total;
    }
    if (threadIdx.x == 0) {
        k.counts[kDigits * k.tiles + blockIdx.x] = carry;
    }
}

__global__ void __launch_bounds__(kThreads) scatter_kernel(const Keys k) {
    PYLUM_SHARED(SortSpace, space);
    const int64_t tile = blockIdx.x;
    const int lane = static_cast<int>(threadIdx.x) % kWarp;
    const int warp = static_cast<int>(threadIdx.x) / kWarp;
    count_digits(k, tile, space);
    uint32_t total;
    uint32_t place = sum_before(k.counts[kDigits * k.tiles + threadIdx.x], space.sums, total);
    place += k.counts[threadIdx.x * k.tiles + tile];
    // sum_before has met all warps: their counts stand.
#pragma unroll
    for (int w = 0; w < kWarps; ++w) {
        const uint32_t count = space.at[w][threadIdx.x];
        space.at[w][threadIdx.x] = place;
        place += count;
    }
    __syncthreads();
    const int64_t first = tile * kSortTile + warp * kWarpKeys;
    for (int i = lane; i < kWarpKeys; i += kWarp) {
        const bool here = first + i < k.lookups;
        const uint64_t key = here ? k.from[first + i] : 0;
        const int digit = here ? digit_of(key, k.shift) : 0;
        const uint32_t peers = peers_of(digit, here);
        const uint32_t before = peers & ((1u << lane) - 1u);
        if (here) {
            k.to[space.at[warp][digit] + static_cast<uint32_t>(__popc(before))] = key;
        }
        __syncwarp();
        if (here && before == 0) {
            space.at[warp][digit] += static_cast<uint32_t>(__popc(peers));
        }
        __syncwarp();
    }
}

// One thread per lookup of a use. A bad lookup gets the row past the last one: it sorts behind the
// others and nobody looks at it.
__global__ void __launch_bounds__(kThreads)
    key_kernel(const Use use, uint64_t* keys, uint64_t first_grad_row, int64_t rows, int shift,
               int32_t* errors) {
    const int64_t step = static_cast<int64_t>(gridDim.x) * kThreads;
    for (int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; i < use.lookups;
         i += step) {
        int64_t row = use.indices[i * use.indices_stride], grad_row = i;
        if (row < 0 || row >= rows) {
            report_error(errors, kBadIndices);
            row = rows;
        }
        if (use.offsets) {
            // The last bag that begins at or before i; offsets that decrease lead anywhere inside.
            int64_t above = use.grad_rows;
            for (grad_row = 0; above - grad_row > 1;) {
                const int64_t middle = grad_row + (above - grad_row) / 2;
                (use.offsets[middle] <= i ? grad_row : above) = middle;
            }
            if (use.grad_rows == 0 || use.offsets[grad_row] > i || use.offsets[grad_row + 1] <= i) {
                report_error(errors, kBadOffsets);
                row = rows;
                grad_row = 0;
            }
        }
        const uint64_t below = row < rows ? first_grad_row + static_cast<uint64_t>(grad_row) : 0;
        keys[i] = static_cast<uint64_t>(row) << shift | below;
    }
}

inline int bits_for(int64_t count) {
    int bits = 0;
    while (bits < 63 && (int64_t{1} << bits) < count) {
        ++bits;
    }
    return bits;
}

struct Sorted {
    const uint64_t* keys;
    int64_t lookups;
    int shift;
};

Sorted sort_lookups(const Params& p, cudaStream_t stream) {
    int64_t lookups = 0, grad_rows = 0;
    for (int64_t u = 0; u < p.num_uses; ++u) {
        lookups += p.uses[u].lookups;
        grad_rows += p.uses[u].grad_rows;
    }
    const int shift = bits_for(grad_rows);
    uint64_t *from = p.words, *to = p.words + lookups;
    uint64_t* keys = from;
    uint64_t first_grad_row = 0;
    for (int64_t u = 0; u < p.num_uses; ++u) {
        const Use& use = p.uses[u];
        launch("row_wise keys", key_kernel, dim3(blocks_for(use.lookups, kThreads)), kThreads, 0,
               stream, use, keys, first_grad_row, p.rows, shift, p.errors);
        keys += use.lookups;
        first_grad_row += static_cast<uint64_t>(use.grad_rows);
    }
    const int64_t tiles = sort_tiles(lookups);
    const int end = shift + bits_for(p.rows + 1);
    for (int digit = shift; lookups > 0 && digit < end; digit += 8) {
        const Keys k{from,    to,    reinterpret_cast<uint32_t*>(p.words + 2 * lookups),
                     lookups, tiles, digit};
        const dim3 grid(static_cast<unsigned>(tiles));
        launch("row_wise count", count_kernel, grid, kThreads, sizeof(SortSpace), stream, k);
        launch("row_wise scan", scan_kernel, dim3(kDigits), kThreads, sizeof(SortSpace), stream, k);
        launch("row_wise scatter", scatter_kernel, grid, kThreads, sizeof(SortSpace), stream, k);
        uint64_t* sorted = to;
        to = from;
        from = sorted;
    }
    return {from, lookups, shift};
}

}  // namespace
}  // namespace pylum::row_wise
