// Kernels with one bug each, which the emulator must report, and the same without it.
#include <string>

#include "common/cuda/launch.h"
#include "common/cuda/numeric.h"
#include "common/cuda/ptx.h"
#include "common/cuda/ptx_hopper.h"
#include "common/cuda/shared.h"

namespace planted {
namespace {

using namespace pylum::cuda;

constexpr int kThreads = 64;

struct Floats {
    float at[kThreads];
};
struct Mail {
    float at[kThreads];
    uint64_t full;
};

template <bool kBug>
__global__ void missing_barrier(float* x) {
    PYLUM_SHARED(Floats, s);
    s.at[threadIdx.x] = x[threadIdx.x];
    if (!kBug) {
        __syncthreads();
    }
    x[threadIdx.x] = s.at[kThreads - 1 - threadIdx.x];
}

// The second turn of the loop overwrites what others still read.
template <bool kBug>
__global__ void missing_second_barrier(float* x) {
    PYLUM_SHARED(Floats, s);
    for (int i = 0; i < 2; ++i) {
        s.at[threadIdx.x] = x[threadIdx.x];
        __syncthreads();
        x[threadIdx.x] = s.at[(threadIdx.x + 32) % kThreads];
        if (!kBug) {
            __syncthreads();
        }
    }
}

template <bool kBug>
__global__ void missing_wait(float* x) {
    PYLUM_SHARED(Floats, s);
    if (threadIdx.x < 16) {
        copy_async16(s.at + 4 * threadIdx.x, x + 4 * threadIdx.x, true);
    }
    copy_async_commit();
    if (!kBug) {
        copy_async_wait<0>();
    }
    __syncthreads();
    const float mine = s.at[(threadIdx.x + 1) % kThreads];
    copy_async_wait<0>();
    x[threadIdx.x] = mine;
}

// The wait is there, but only the thread that copied may read without a barrier.
template <bool kBug>
__global__ void wait_without_barrier(float* x) {
    PYLUM_SHARED(Floats, s);
    if (threadIdx.x < 16) {
        copy_async16(s.at + 4 * threadIdx.x, x + 4 * threadIdx.x, true);
    }
    copy_async_commit();
    copy_async_wait<0>();
    if (!kBug) {
        __syncthreads();
    }
    x[threadIdx.x] = s.at[threadIdx.x];
}

template <bool kBug>
__global__ void wait_for_the_wrong_group(float* x) {
    PYLUM_SHARED(Floats, s);
    if (threadIdx.x < 8) {
        copy_async16(s.at + 4 * threadIdx.x, x + 4 * threadIdx.x, true);
    }
    copy_async_commit();
    if (threadIdx.x < 8) {
        copy_async16(s.at + 32 + 4 * threadIdx.x, x + 32 + 4 * threadIdx.x, true);
    }
    copy_async_commit();
    copy_async_wait<kBug ? 1 : 0>();
    __syncthreads();
    const float mine = s.at[kThreads - 1 - threadIdx.x];
    copy_async_wait<0>();
    x[threadIdx.x] = mine;
}

template <bool kBug>
__global__ void divergent_barrier(float* x) {
    PYLUM_SHARED(Floats, s);
    s.at[threadIdx.x] = x[threadIdx.x];
    if (kBug && threadIdx.x < 32) {
        __syncthreads();
    } else {
        __syncthreads();
    }
    x[threadIdx.x] = s.at[kThreads - 1 - threadIdx.x];
}

template <bool kBug>
__global__ void off_by_one(float* x, int64_t size) {
    const int64_t i = threadIdx.x + (kBug ? 1 : 0);
    if (i < size + (kBug ? 1 : 0)) {
        x[i] = x[i] + 1.0f;
    }
}

template <bool kBug>
__global__ void past_shared_memory(float* x) {
    PYLUM_SHARED(Floats, s);
    s.at[threadIdx.x] = x[threadIdx.x];
    __syncthreads();
    const float* from = s.at;
    x[threadIdx.x] = from[threadIdx.x + (kBug ? 1 : 0)];
}

template <bool kBug>
__global__ void past_an_array(float* x) {
    float mine[4] = {1.0f, 2.0f, 3.0f, 4.0f};
    const int i = static_cast<int>(threadIdx.x) % (kBug ? 5 : 4);
    mine[i] += x[threadIdx.x];
    x[threadIdx.x] = mine[i];
}

template <bool kBug>
__global__ void overflow(float* x) {
    const int sum = (kBug ? INT32_MAX : 64) + static_cast<int>(threadIdx.x);
    x[threadIdx.x] = static_cast<float>(sum % 7);
}

template <bool kBug>
__global__ void long_shift(float* x) {
    const unsigned by = threadIdx.x % 32 + (kBug ? 1 : 0);
    x[threadIdx.x] = static_cast<float>(1u << by);
}

template <bool kBug>
__global__ void misaligned(float* x) {
    const int i = kBug ? 1 : 4;
    if (threadIdx.x == 0) {
        store_pack<4>(x, load_pack<4>(x + i));
    }
}

template <bool kBug>
__global__ void wrong_lane(float* x) {
    if (threadIdx.x % 32 < 16) {
        x[threadIdx.x] = __shfl_sync(0xffffu, x[threadIdx.x], kBug ? 16 : 15);
    }
}

template <bool kBug>
__global__ void wrong_mask(float* x) {
    if (threadIdx.x % 32 < 16) {
        x[threadIdx.x] = __shfl_xor_sync(kBug ? ~0u : 0xffffu, x[threadIdx.x], 1);
    }
}

template <bool kBug>
__global__ void blocks_race(float* x) {
    const unsigned i = kBug ? threadIdx.x : threadIdx.x + blockIdx.x * 32;
    if (threadIdx.x < 32) {
        x[i] = static_cast<float>(blockIdx.x);
    }
}

template <bool kBug>
__global__ void lanes_race(float* x) {
    PYLUM_SHARED(Floats, s);
    s.at[threadIdx.x] = x[threadIdx.x];
    if (!kBug) {
        __syncwarp();
    }
    x[threadIdx.x] = s.at[threadIdx.x ^ 1];
}

// Each warp has a barrier, but not the same one.
template <bool kBug>
__global__ void barrier_of_others(float* x) {
    PYLUM_SHARED(Floats, s);
    if (threadIdx.x < 32) {
        s.at[threadIdx.x] = x[threadIdx.x];
    }
    kBug ? named_barrier(1 + static_cast<int>(threadIdx.x) / 32, 32) : named_barrier(1, 64);
    if (threadIdx.x >= 32) {
        x[threadIdx.x] = s.at[threadIdx.x - 32];
    }
}

// One lane arrives for its warp, which has not yet met.
template <bool kBug>
__global__ void arrival_of_one_lane(float* x) {
    PYLUM_SHARED(Mail, s);
    if (threadIdx.x == 0) {
        barrier_init(&s.full, 1);
        fence_barriers();
    }
    __syncthreads();
    if (threadIdx.x < 32) {
        s.at[threadIdx.x] = x[threadIdx.x];
        if (!kBug) {
            __syncwarp();
        }
        if (threadIdx.x == 0) {
            barrier_arrive(&s.full);
        }
    } else {
        barrier_wait(&s.full, 0);
        x[threadIdx.x] = s.at[threadIdx.x - 32];
    }
}

// What others have read is overwritten once one of the two has said that it is done.
template <bool kBug>
__global__ void early_overwrite(float* x) {
    PYLUM_SHARED(Mail, s);
    if (threadIdx.x == 0) {
        barrier_init(&s.full, kBug ? 1 : 2);
        fence_barriers();
    }
    s.at[threadIdx.x] = x[threadIdx.x];
    __syncthreads();
    x[threadIdx.x] = s.at[(threadIdx.x + 32) % kThreads];
    __syncwarp();
    if (threadIdx.x == 0 || (!kBug && threadIdx.x == 32)) {
        barrier_arrive(&s.full);
    }
    barrier_wait(&s.full, 0);
    s.at[threadIdx.x] = 0.0f;
}

template <bool kBug>
void run(const std::string& name, float* x, int64_t size) {
    const auto go = [&](auto kernel, unsigned blocks = 1, size_t shared = sizeof(Floats)) {
        launch(name.c_str(), kernel, dim3(blocks), kThreads, shared, nullptr, x);
    };
    if (name == "missing_barrier") {
        go(missing_barrier<kBug>);
    } else if (name == "missing_second_barrier") {
        go(missing_second_barrier<kBug>);
    } else if (name == "missing_wait") {
        go(missing_wait<kBug>);
    } else if (name == "wait_without_barrier") {
        go(wait_without_barrier<kBug>);
    } else if (name == "wait_for_the_wrong_group") {
        go(wait_for_the_wrong_group<kBug>);
    } else if (name == "divergent_barrier") {
        go(divergent_barrier<kBug>);
    } else if (name == "off_by_one") {
        launch("off_by_one", off_by_one<kBug>, dim3(1), kThreads, 0, nullptr, x, size);
    } else if (name == "past_shared_memory") {
        go(past_shared_memory<kBug>);
    } else if (name == "past_an_array") {
        go(past_an_array<kBug>);
    } else if (name == "overflow") {
        go(overflow<kBug>);
    } else if (name == "long_shift") {
        go(long_shift<kBug>);
    } else if (name == "misaligned") {
        go(misaligned<kBug>);
    } else if (name == "wrong_lane") {
        go(wrong_lane<kBug>);
    } else if (name == "wrong_mask") {
        go(wrong_mask<kBug>);
    } else if (name == "blocks_race") {
        go(blocks_race<kBug>, 2);
    } else if (name == "lanes_race") {
        go(lanes_race<kBug>);
    } else if (name == "barrier_of_others") {
        go(barrier_of_others<kBug>);
    } else if (name == "arrival_of_one_lane") {
        go(arrival_of_one_lane<kBug>, 1, sizeof(Mail));
    } else if (name == "early_overwrite") {
        go(early_overwrite<kBug>, 1, sizeof(Mail));
    } else {
        throw std::invalid_argument("no such kernel: " + name);
    }
}

}  // namespace

void run(const std::string& name, bool bug, uintptr_t data, int64_t size) {
    auto* x = reinterpret_cast<float*>(data);
    bug ? run<true>(name, x, size) : run<false>(name, x, size);
}

}  // namespace planted
