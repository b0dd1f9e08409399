// What each wrapper of csrc/common/cuda/ptx_hopper.h makes of given bits: as golden.cu, a
// warpgroup a case.
#include <string>

#include "common/cuda/launch.h"
#include "common/cuda/numeric.h"
#include "common/cuda/ptx_hopper.h"
#include "common/cuda/shared.h"

namespace golden::hopper {

using namespace pylum::cuda;

constexpr int kThreads = 128;

__device__ inline int thread() { return static_cast<int>(threadIdx.x); }

template <typename T>
__device__ inline T* of_thread(T* x, int words) {
    return x + (static_cast<int64_t>(blockIdx.x) * kThreads + thread()) * words;
}

// Word `pair` of a row of 32, its chunks permuted as copy_tile() does.
__device__ inline int place_of(int row, int pair) {
    return row * 32 + (pair / 4 ^ row % 8) * 4 + pair % 4;
}

struct Box {
    static constexpr int kColumns = 80, kHeads = 2, kIn = 32, kOut = 16;  // words of a thread
    alignas(1024) uint32_t words[64 * 32];
    uint64_t barrier;
};

struct Mail {
    static constexpr int kTurns = 6;
    uint32_t words[2][64];
    uint64_t full[2], empty[2];
};

}  // namespace golden::hopper

namespace golden {
namespace {

using namespace hopper;

// The inputs as rows of 2 heads of 80: boxes that begin before them, inside and past their end;
// shared memory as it stands then.
__global__ void copy_tile_kernel(uint32_t* out, const __grid_constant__ TensorMap map) {
#if !defined(__CUDA_ARCH__) || defined(__CUDA_ARCH_FEAT_SM90_ALL)
    PYLUM_SHARED(Box, box);
    if (thread() == 0) {
        barrier_init(&box.barrier, 1);
        fence_barriers();
    }
    __syncthreads();
    if (thread() == 0) {
        const int i = static_cast<int>(blockIdx.x);
        barrier_expect(&box.barrier, sizeof box.words);
        copy_tile(box.words, map, 32 * (i % 4) - 16, i % 3, 50 * i - 3, &box.barrier);
    }
    barrier_wait(&box.barrier, 0);
    for (int i = 0; i < Box::kOut; ++i) {
        of_thread(out, Box::kOut)[i] = box.words[thread() * Box::kOut + i];
    }
#endif
}

// Words pass from one half of the warpgroup to the other through two places, whose phases end in
// turn: what comes is of the turn that it was sent in.
__global__ void __launch_bounds__(kThreads, 1) barriers_kernel(const uint32_t* in, uint32_t* out) {
#if !defined(__CUDA_ARCH__) || defined(__CUDA_ARCH_FEAT_SM90_ALL)
    PYLUM_SHARED(Mail, mail);
    if (thread() == 0) {
        for (int i = 0; i < 2; ++i) {
            barrier_init(&mail.full[i], 64);
            barrier_init(&mail.empty[i], 64);
        }
        fence_barriers();
    }
    __syncthreads();
    fewer_registers<64>();
    const int half = thread() / 64, own = thread() % 64;
    for (int turn = 0; turn < Mail::kTurns; ++turn) {
        const int place = turn % 2;
        const uint32_t parity = turn / 2 % 2;
        if (half == 0) {
            barrier_wait(&mail.empty[place], parity ^ 1);
            mail.words[place][own] = of_thread(in, Mail::kTurns)[turn];
            barrier_arrive(&mail.full[place]);
            of_thread(out, Mail::kTurns)[turn] = 0;
        } else {
            barrier_wait(&mail.full[place], parity);
            of_thread(out, Mail::kTurns)[turn] = mail.words[place][63 - own];
            barrier_arrive(&mail.empty[place]);
        }
    }
    named_barrier(3, kThreads);
    more_registers<128>();
#endif
}

enum class Form { kTiles, kRegisters, kWide };

template <Form kForm>
constexpr int kFragments = kForm == Form::kWide ? 16 : 8;  // of d
// Words of a thread: of a, of b, of d.
template <Form kForm>
constexpr int kRight = kFragments<kForm> / 2;
template <Form kForm>
constexpr int kGroupIn = 4 + kRight<kForm> + 4 * kFragments<kForm>;

struct Factors {
    alignas(1024) uint32_t a[64 * 32];
    uint32_t b[2 * 64 * 32];
};

template <typename T, Form kForm, bool kTransposed, bool kFresh>
__global__ void __launch_bounds__(kThreads, 1) group_kernel(const uint32_t* in, uint32_t* out) {
#if !defined(__CUDA_ARCH__) || defined(__CUDA_ARCH_FEAT_SM90_ALL)
    constexpr int kCount = kFragments<kForm>, kWords = kRight<kForm>;
    PYLUM_SHARED(Factors, s);
    const uint32_t* mine = of_thread(in, kGroupIn<kForm>);
    for (int i = thread(); i < 64 * 32; i += kThreads) {
        s.a[i] = s.b[i] = s.b[64 * 32 + i] = 0;
    }
    __syncthreads();
    // 16 of the tile's 64 columns, or rows, hold the depth.
    const int k = static_cast<int>(blockIdx.x) % 4;
    for (int i = 0; i < 4; ++i) {
        const int word = thread() * 4 + i;
        s.a[place_of(word / 8, 8 * k + word % 8)] = mine[i];
    }
    for (int i = 0; i < kWords; ++i) {
        const int word = thread() * kWords + i;
        const int row = kTransposed ? 16 * k + word / (4 * kCount) : word / 8;
        const int pair = kTransposed ? word % (4 * kCount) : 8 * k + word % 8;
        s.b[pair / 32 * 64 * 32 + place_of(row, pair % 32)] = mine[4 + i];
    }
    fence_proxies();
    named_barrier(1, kThreads);
    float d[kCount][4];
    for (int i = 0; i < 4 * kCount; ++i) {
        d[i / 4][i % 4] = __uint_as_float(mine[4 + kWords + i]);
    }
    const uint64_t b = matrix_of(s.b + (kTransposed ? 16 * 32 : 8) * k, 1024, 8192);
    group_fence();
    if constexpr (kForm == Form::kTiles) {
        multiply_group<T, kTransposed, kFresh>(d, matrix_of(s.a + 8 * k, 1024, 0), b);
    } else {
        const uint32_t a[4] = {mine[0], mine[1], mine[2], mine[3]};
        if constexpr (kForm == Form::kWide) {
            multiply_group<T, kTransposed>(d, a, b);
        } else {
            multiply_group<T, kTransposed, kFresh>(d, a, b);
        }
    }
    group_commit();
    group_wait<0>();
    settle(d);
    for (int i = 0; i < 4 * kCount; ++i) {
        of_thread(out, 4 * kCount)[i] = __float_as_uint(d[i / 4][i % 4]);
    }
#endif
}

struct Call {
    const uint32_t* in;
    uint32_t* out;
    int64_t cases;

    template <typename... Wanted, typename... Given>
    void go(void (*kernel)(Wanted...), size_t shared, Given&&... given) const {
        launch("golden", kernel, dim3(static_cast<unsigned>(cases)), kThreads, shared, nullptr,
               std::forward<Given>(given)...);
    }
};

template <typename T>
bool run_group(const std::string& form, const Call& call) {
    const auto go = [&](auto kernel) {
        call.go(kernel, sizeof(Factors), call.in, call.out);
        return true;
    };
    constexpr Form kTiles = Form::kTiles, kRegisters = Form::kRegisters, kWide = Form::kWide;
    return form == "tiles"               ? go(group_kernel<T, kTiles, false, false>)
           : form == "tiles_columns"     ? go(group_kernel<T, kTiles, true, false>)
           : form == "tiles_fresh"       ? go(group_kernel<T, kTiles, false, true>)
           : form == "registers"         ? go(group_kernel<T, kRegisters, false, false>)
           : form == "registers_columns" ? go(group_kernel<T, kRegisters, true, false>)
           : form == "registers_fresh"   ? go(group_kernel<T, kRegisters, false, true>)
           : form == "wide"              ? go(group_kernel<T, kWide, false, false>)
           : form == "wide_columns"      ? go(group_kernel<T, kWide, true, false>)
                                         : false;
}

}  // namespace

// False for a name that is not here.
bool run_hopper(const std::string& name, const uint32_t* in, uint32_t* out, int64_t cases) {
    const Call call{in, out, cases};
    if (name == "copy_tile") {
        TensorMap map;
        const int64_t rows = cases * kThreads * Box::kIn * 2 / (Box::kColumns * Box::kHeads);
        if (!encode_map(&map, in, {Box::kColumns, Box::kHeads, rows},
                        {1, Box::kColumns, Box::kColumns * Box::kHeads}, 64)) {
            throw std::invalid_argument("the copy engine does not take the tensor");
        }
        call.go(copy_tile_kernel, sizeof(Box), out, map);
        return true;
    }
    if (name == "barriers") {
        call.go(barriers_kernel, sizeof(Mail), in, out);
        return true;
    }
    const std::string bfloat16 = "group_bfloat16_", float16 = "group_float16_";
    if (name.rfind(bfloat16, 0) == 0) {
        return run_group<__nv_bfloat16>(name.substr(bfloat16.size()), call);
    }
    return name.rfind(float16, 0) == 0 && run_group<__half>(name.substr(float16.size()), call);
}

}  // namespace golden
