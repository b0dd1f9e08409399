// An LSD radix sort, three launches for each 8 bits of a key. Each reads the keys once and the last
// writes them once: bound by memory.
#include "common/cuda/launch.h"
#include "common/cuda/numeric.h"
#include "common/cuda/shared.h"
#include "common/cuda/sort.h"

namespace pylum::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kWarp = 32;
constexpr int kWarps = kThreads / kWarp;
constexpr int kDigits = 256;  // values of the 8 bits of a pass
constexpr int kWarpKeys = static_cast<int>(kSortTile) / kWarps;
static_assert(kDigits == kThreads);

struct Keys {
    const uint64_t* from;  // in the order of the digits below
    uint64_t* to;
    uint32_t* counts;  // [kDigits, tiles], then [kDigits] sums over the tiles
    int64_t count, tiles;
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
        const bool here = first + i < k.count;
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
        const bool here = first + i < k.count;
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

}  // namespace

const uint64_t* launch_sort(uint64_t* words, int64_t count, int begin, int end,
                            cudaStream_t stream) {
    uint64_t *from = words, *to = words + count;
    const int64_t tiles = sort_tiles(count);
    for (int digit = begin; count > 0 && digit < end; digit += 8) {
        const Keys k{from, to, reinterpret_cast<uint32_t*>(words + 2 * count), count, tiles, digit};
        const dim3 grid(static_cast<unsigned>(tiles));
        launch("sort: count", count_kernel, grid, kThreads, sizeof(SortSpace), stream, k);
        launch("sort: scan", scan_kernel, dim3(kDigits), kThreads, sizeof(SortSpace), stream, k);
        launch("sort: scatter", scatter_kernel, grid, kThreads, sizeof(SortSpace), stream, k);
        uint64_t* sorted = to;
        to = from;
        from = sorted;
    }
    return from;
}

}  // namespace pylum::cuda
