// Products of tiles by the engines of sm_90: right, for the tests of each wrapper, and with one bug
// each, which the emulator must report or which must show in the result.
#include <array>
#include <map>
#include <stdexcept>
#include <string>

#include "common/cuda/launch.h"
#include "common/cuda/numeric.h"
#include "common/cuda/ptx_hopper.h"
#include "common/cuda/shared.h"

namespace planted {
namespace {

using namespace pylum::cuda;

enum class Bug {
    kNone,
    kMissingWait,
    kWrongParity,
    kMissingProxyFence,
    kWrongSwizzle,
    kMissingGroupWait,
    kMissingGroupFence,
    kWrongBytes,
    kEarlyOverwrite,
    kWrongNumber,
    kWrongRegisters,
    kTooManyRegisters,
    kMissingBarrierFence,
    kMissingExpect,
    kBarrierBeforeItsTime,
    kDataOverBarrier,
    kLateProxyFence,
    kFenceBeforeWait,
    kEngineOverThreads,
    kThreadOverProduct,
    kWrittenSums,
    kTouchedSums,
    kOtherTiles,
};

struct Tiles {
    alignas(1024) uint16_t a[64 * 64];
    uint16_t b[128 * 64];
    uint64_t barrier;
};

// out [64, 8 * kCount] += a [64, 64] * b^T, b [8 * kCount, 64] or, transposed, [64, 8 * kCount].
template <typename T, int kCount, bool kTransposed, bool kOfRegisters, Bug kBug>
__global__ void __launch_bounds__(128, 1)
    product_kernel(const T* a, float* out, const __grid_constant__ TensorMap b_map, int head,
                   int first) {
    PYLUM_SHARED(Tiles, s);
    const int thread = static_cast<int>(threadIdx.x), lane = thread % 32;
    const int row = thread / 32 * 16 + lane / 4, t = lane % 4;
    if (thread == 0) {
        barrier_init(&s.barrier, 1);
        if (kBug != Bug::kMissingBarrierFence) {
            fence_barriers();
        }
    }
    if (kBug == Bug::kEngineOverThreads) {
        s.b[thread] = 0;
    }
    if (kBug != Bug::kBarrierBeforeItsTime) {
        __syncthreads();
    }
    if (thread == 0) {
        if (kBug == Bug::kMissingExpect) {
            barrier_arrive(&s.barrier);
        } else {
            barrier_expect(&s.barrier, kCount * 1024 + (kBug == Bug::kWrongBytes ? 16 : 0));
        }
        for (int part = 0; part < (kTransposed ? kCount / 8 : 1); ++part) {
            copy_tile(s.b + part * 64 * 64, b_map, 64 * part, head, first, &s.barrier);
        }
    }
    if (kBug == Bug::kBarrierBeforeItsTime) {
        barrier_wait(&s.barrier, 0);
    }
    if (!kOfRegisters) {
        for (int i = thread; i < 64 * 8; i += 128) {
            const int chunk = kBug == Bug::kWrongSwizzle ? i % 8 : i % 8 ^ i / 8 % 8;
            T* to = reinterpret_cast<T*>(s.a) + i / 8 * 64 + chunk * 8;
            if (kBug == Bug::kFenceBeforeWait) {
                copy_async16(to, a + i * 8, true);
            } else {
                store_pack<8>(to, load_pack<8>(a + i * 8));
            }
        }
        if (kBug != Bug::kMissingProxyFence && kBug != Bug::kLateProxyFence) {
            fence_proxies();
        }
        copy_async_commit();
        copy_async_wait<0>();
    }
    named_barrier(kBug == Bug::kWrongNumber && thread >= 64 ? 2 : 1, 128);
    if (kBug != Bug::kMissingWait) {
        barrier_wait(&s.barrier, kBug == Bug::kWrongParity ? 1 : 0);
    }
    if (kBug == Bug::kLateProxyFence) {
        fence_proxies();
    }
    fewer_registers<128>();
    if (kBug == Bug::kWrongRegisters) {
        more_registers<120>();
    }
    if (kBug == Bug::kTooManyRegisters) {
        more_registers<256>();
    }
    float d[kCount][4];
    for (int n = 0; n < kCount; ++n) {
        for (int i = 0; i < 4; ++i) {
            d[n][i] = out[(row + i / 2 * 8) * 8 * kCount + 8 * n + 2 * t + i % 2];
        }
    }
    if (kBug != Bug::kMissingGroupFence) {
        group_fence();
    }
#pragma unroll
    for (int k = 0; k < 4; ++k) {
        if (kBug == Bug::kTouchedSums && k == 2) {
            group_commit();
            group_wait<0>();
            group_fence();
            d[0][0] += 1.0f;
        }
        const auto* b = s.b + (kTransposed ? 16 * 64 : 16) * k;
        if (kBug == Bug::kOtherTiles && thread >= 64) {
            b = s.b;
        }
        if constexpr (kOfRegisters) {
            uint32_t left[4];
            for (int i = 0; i < 4; ++i) {
                const Pack<T, 2> pair =
                    load_pack<2>(a + (row + i % 2 * 8) * 64 + 16 * k + i / 2 * 8 + 2 * t);
                memcpy(&left[i], &pair, sizeof pair);
            }
            multiply_group<T, kTransposed>(d, left, matrix_of(b, 1024, 8192));
        } else {
            multiply_group<T, kTransposed>(d, matrix_of(s.a + 16 * k, 1024, 0),
                                           matrix_of(b, 1024, 8192));
        }
    }
    group_commit();
    if (kBug == Bug::kEarlyOverwrite) {
        __syncthreads();
        if (thread == 0) {
            barrier_expect(&s.barrier, kCount * 1024);
            copy_tile(s.b, b_map, 0, head, first, &s.barrier);
        }
    }
    if (kBug == Bug::kThreadOverProduct) {
        __syncthreads();
        s.b[thread] = static_cast<uint16_t>(s.b[thread] ^ 0x4000);
    }
    if (kBug == Bug::kWrittenSums) {
        d[0][0] = 0.0f;
    }
    if (kBug != Bug::kMissingGroupWait) {
        group_wait<0>();
    }
    if (kBug == Bug::kDataOverBarrier) {
        s.barrier = 0;
    }
    for (int n = 0; n < kCount; ++n) {
        for (int i = 0; i < 4; ++i) {
            out[(row + i / 2 * 8) * 8 * kCount + 8 * n + 2 * t + i % 2] = d[n][i];
        }
    }
    group_wait<0>();
}

struct Product {
    uintptr_t a, b, out;
    int64_t columns, heads, rows, head_stride, row_stride;  // of b
    int head, first;
};

template <typename T, int kCount, bool kTransposed, bool kOfRegisters, Bug kBug = Bug::kNone>
void go(const Product& p) {
    TensorMap map;
    if (!encode_map(&map, reinterpret_cast<const void*>(p.b), {p.columns, p.heads, p.rows},
                    {1, p.head_stride, p.row_stride}, kTransposed ? 64 : 8 * kCount)) {
        throw std::invalid_argument("the copy engine does not take the tensor");
    }
    launch("product", product_kernel<T, kCount, kTransposed, kOfRegisters, kBug>, dim3(1), 128,
           sizeof(Tiles), nullptr, reinterpret_cast<const T*>(p.a), reinterpret_cast<float*>(p.out),
           map, p.head, p.first);
}

template <Bug kBug>
void with_bug(const Product& p) {
    go<__nv_bfloat16, 8, false, false, kBug>(p);
}

}  // namespace

void tile_product(const std::string& name, bool half, int count, bool transposed, bool registers,
                  uintptr_t a, uintptr_t b, uintptr_t out, const std::array<int64_t, 5>& of_b,
                  int head, int first) {
    const Product p{a, b, out, of_b[0], of_b[1], of_b[2], of_b[3], of_b[4], head, first};
    const std::map<std::string, void (*)(const Product&)> bugs = {
        {"missing_wait", with_bug<Bug::kMissingWait>},
        {"wrong_parity", with_bug<Bug::kWrongParity>},
        {"missing_proxy_fence", with_bug<Bug::kMissingProxyFence>},
        {"wrong_swizzle", with_bug<Bug::kWrongSwizzle>},
        {"missing_group_wait", with_bug<Bug::kMissingGroupWait>},
        {"missing_group_fence", with_bug<Bug::kMissingGroupFence>},
        {"wrong_bytes", with_bug<Bug::kWrongBytes>},
        {"early_overwrite", with_bug<Bug::kEarlyOverwrite>},
        {"wrong_number", with_bug<Bug::kWrongNumber>},
        {"wrong_registers", with_bug<Bug::kWrongRegisters>},
        {"too_many_registers", with_bug<Bug::kTooManyRegisters>},
        {"missing_barrier_fence", with_bug<Bug::kMissingBarrierFence>},
        {"missing_expect", with_bug<Bug::kMissingExpect>},
        {"barrier_before_its_time", with_bug<Bug::kBarrierBeforeItsTime>},
        {"data_over_barrier", with_bug<Bug::kDataOverBarrier>},
        {"late_proxy_fence", with_bug<Bug::kLateProxyFence>},
        {"fence_before_wait", with_bug<Bug::kFenceBeforeWait>},
        {"engine_over_threads", with_bug<Bug::kEngineOverThreads>},
        {"thread_over_product", with_bug<Bug::kThreadOverProduct>},
        {"written_sums", with_bug<Bug::kWrittenSums>},
        {"touched_sums", with_bug<Bug::kTouchedSums>},
        {"other_tiles", with_bug<Bug::kOtherTiles>},
    };
    if (!name.empty()) {
        bugs.at(name)(p);
        return;
    }
    const auto of = [&](auto type) {
        using T = decltype(type);
        if (count == 16) {
            transposed ? go<T, 16, true, true>(p) : go<T, 16, false, true>(p);
        } else if (transposed) {
            registers ? go<T, 8, true, true>(p) : go<T, 8, true, false>(p);
        } else {
            registers ? go<T, 8, false, true>(p) : go<T, 8, false, false>(p);
        }
    };
    half ? of(__half{}) : of(__nv_bfloat16{});
}

}  // namespace planted
