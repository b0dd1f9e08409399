// The best keys of a query in shared memory. A pair of score and row is one integer, greater where
// it is better. Keys are appended until the buffer is nearly full; then it is sorted, the k best
// stay, and the worst of them is what later keys must pass.
#pragma once

#include "common/cuda/numeric.h"
#include "topk/cuda/split.h"

namespace pylum::topk {
namespace {

constexpr int kWarp = 32;

using Key = unsigned long long;  // 0 is no pair

__device__ inline Key key_of(float score, int64_t row) {
    const unsigned bits = __float_as_uint(score + 0.0f);  // -0 and 0 tie
    const unsigned ordered = bits >> 31 ? ~bits : bits | 0x80000000u;
    return static_cast<Key>(ordered) << 32 | static_cast<unsigned>(~row);
}

__device__ inline float score_of(Key key) {
    const auto ordered = static_cast<unsigned>(key >> 32);
    return __uint_as_float(ordered >> 31 ? ordered & 0x7fffffffu : ~ordered);
}

__device__ inline int64_t row_of(Key key) { return static_cast<unsigned>(~key); }

// Greatest first, by `threads` threads that sync() joins; n is a power of two.
template <typename Sync>
__device__ __forceinline__ void sort_keys(Key* keys, int n, int thread, int threads,
                                          const Sync& sync) {
    for (int run = 2; run <= n; run *= 2) {
        for (int step = run / 2; step > 0; step /= 2) {
            for (int i = thread; i < n / 2; i += threads) {
                const int low = (i & ~(step - 1)) * 2 + (i & (step - 1)), high = low + step;
                const Key a = keys[low], b = keys[high];
                if ((a < b) == ((low & run) == 0)) {
                    keys[low] = b;
                    keys[high] = a;
                }
            }
            sync();
        }
    }
}

// Leaves out the repetitions among n sorted keys; returns how many are left. By one warp.
__device__ __forceinline__ int drop_repeated(Key* keys, int n) {
    const int lane = static_cast<int>(threadIdx.x) % kWarp;
    int kept = 0;
    Key before = 0;
    for (int first = 0; first < n; first += kWarp) {
        const int i = first + lane;
        const Key own = i < n ? keys[i] : 0;
        const Key left = __shfl_up_sync(~0u, own, 1);
        const bool fresh = own != 0 && own != (lane ? left : before);
        before = __shfl_sync(~0u, own, kWarp - 1);
        const unsigned all = __ballot_sync(~0u, fresh);
        if (fresh) {
            keys[kept + __popc(all & ((1u << lane) - 1u))] = own;
        }
        kept += __popc(all);
        __syncwarp();
    }
    return kept;
}

struct Selection {
    Key threshold;  // what a key must be above
    float least;    // its score; -infinity while fewer than k are known
    int size;

    __device__ void clear() {
        threshold = 0;
        least = -INFINITY;
        size = 0;
    }

    // Any thread; the buffer has room for what comes before the next shrink().
    __device__ void offer(Key* keys, Key key) {
        if (key > threshold) {
            keys[atomicAdd(&size, 1)] = key;
        }
    }

    // Sorts the keys and keeps the k best of the different ones. `threads` threads from `thread` 0
    // on, of which the first warp is whole, joined by sync().
    template <typename Sync>
    __device__ __forceinline__ void shrink(Key* keys, int k, bool repeated, int thread, int threads,
                                           const Sync& sync) {
        const int filled = size;
        int n = 2;
        while (n < filled) {
            n *= 2;
        }
        for (int i = filled + thread; i < n; i += threads) {
            keys[i] = 0;
        }
        sync();
        sort_keys(keys, n, thread, threads, sync);
        if (thread < kWarp) {
            const int distinct = repeated ? drop_repeated(keys, filled) : filled;
            if (thread == 0) {
                size = distinct < k ? distinct : k;
                if (distinct >= k) {
                    threshold = keys[k - 1];
                    least = score_of(threshold);
                }
            }
        }
        sync();
    }
};

}  // namespace
}  // namespace pylum::topk
