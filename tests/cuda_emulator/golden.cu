// What each wrapper of csrc/common/cuda/ptx.h, and each function of CUDA that the kernels use,
// makes of given bits: run by golden.py on a GPU, whose results are kept, and on the emulator.
//
// One warp a case; every lane reads kIn words of its own and writes kOut.
#include <cstdio>
#include <string>

#include "common/cuda/launch.h"
#include "common/cuda/numeric.h"
#include "common/cuda/ptx.h"
#include "common/cuda/shared.h"

namespace golden {

bool run_hopper(const std::string& name, const uint32_t* in, uint32_t* out, int64_t cases);

namespace {

using namespace pylum::cuda;

struct alignas(16) Row {
    uint32_t at[4];
};
struct Rows {
    Row at[64];
};

__device__ inline int lane_of() { return static_cast<int>(threadIdx.x); }

template <int kIn, int kOut>
struct Lane {
    const uint32_t* in;
    uint32_t* out;
    __device__ Lane(const uint32_t* in, uint32_t* out)
        : in(in + (static_cast<int64_t>(blockIdx.x) * 32 + lane_of()) * kIn),
          out(out + (static_cast<int64_t>(blockIdx.x) * 32 + lane_of()) * kOut) {}
    __device__ float number(int i) const { return __uint_as_float(in[i]); }
    __device__ void number(int i, float x) const { out[i] = __float_as_uint(x); }
};

// Words 0 to 3 and 4 to 7 are two rows, copied one behind the other; 8 and 9: whether they are.
__global__ void copy_kernel(const uint32_t* in, uint32_t* out) {
    PYLUM_SHARED(Rows, rows);
    const Lane<12, 8> lane(in, out);
    const int place = lane_of() * 7 % 32;
    copy_async16(&rows.at[place], lane.in, lane.in[8] != 0);
    copy_async_commit();
    copy_async16(&rows.at[32 + place], lane.in + 4, lane.in[9] != 0);
    copy_async_commit();
    copy_async_wait<1>();
    __syncthreads();
    for (int i = 0; i < 4; ++i) {
        lane.out[i] = rows.at[lane_of()].at[i];
    }
    copy_async_wait<0>();
    __syncthreads();
    for (int i = 0; i < 4; ++i) {
        lane.out[4 + i] = rows.at[32 + lane_of()].at[i];
    }
}

template <bool kTransposed>
__global__ void matrices_kernel(const uint32_t* in, uint32_t* out) {
    PYLUM_SHARED(Rows, rows);
    const Lane<4, 4> lane(in, out);
    for (int i = 0; i < 4; ++i) {
        rows.at[lane_of()].at[i] = lane.in[i];
    }
    __syncthreads();
    uint32_t to[4];
    const Row* row = &rows.at[lane_of() * 5 % 32];
    if constexpr (kTransposed) {
        load_matrices_transposed(to, row);
    } else {
        load_matrices(to, row);
    }
    for (int i = 0; i < 4; ++i) {
        lane.out[i] = to[i];
    }
}

struct Tf32 {};

// Words 0 to 3: a; 4 and 5: b; 6 to 9: d.
template <typename T>
__global__ void multiply_kernel(const uint32_t* in, uint32_t* out) {
    const Lane<10, 4> lane(in, out);
    const uint32_t a[4] = {lane.in[0], lane.in[1], lane.in[2], lane.in[3]};
    float d[4] = {lane.number(6), lane.number(7), lane.number(8), lane.number(9)};
    if constexpr (std::is_same_v<T, Tf32>) {
        multiply_tf32(d, a, lane.in[4], lane.in[5]);
    } else {
        multiply<T>(d, a, lane.in[4], lane.in[5]);
    }
    for (int i = 0; i < 4; ++i) {
        lane.number(i, d[i]);
    }
}

__global__ void functions_kernel(const uint32_t* in, uint32_t* out) {
    const Lane<1, 3> lane(in, out);
    lane.number(0, exp2_fast(lane.number(0)));
    lane.number(1, reciprocal_fast(lane.number(0)));
    lane.number(2, tanh_fast(lane.number(0)));
}

__global__ void conversions_kernel(const uint32_t* in, uint32_t* out) {
    const Lane<1, 4> lane(in, out);
    const float x = lane.number(0);
    Pack<__nv_bfloat16, 2> b;
    b.at[0] = from_float<__nv_bfloat16>(x);
    b.at[1] = from_float<__nv_bfloat16>(-x);
    Pack<__half, 2> h;
    h.at[0] = from_float<__half>(x);
    h.at[1] = from_float<__half>(-x);
    lane.number(0, to_float(b.at[0]));
    lane.number(1, to_float(b.at[1]));
    lane.number(2, to_float(h.at[0]));
    lane.number(3, to_float(h.at[1]));
}

// Word 0: a value; 1: the lane to ask.
__global__ void shuffles_kernel(const uint32_t* in, uint32_t* out) {
    const Lane<2, 6> lane(in, out);
    const uint32_t x = lane.in[0];
    lane.out[0] = __shfl_sync(~0u, x, static_cast<int>(lane.in[1] % 32));
    lane.out[1] = __shfl_sync(~0u, x, static_cast<int>(lane.in[1] % 8), 8);
    lane.out[2] = __shfl_xor_sync(~0u, x, 5);
    lane.out[3] = __shfl_up_sync(~0u, x, 3);
    lane.out[4] = __shfl_down_sync(~0u, x, 7);
    lane.out[5] = __shfl_up_sync(~0u, x, 3, 8);
}

__global__ void votes_kernel(const uint32_t* in, uint32_t* out) {
    const Lane<1, 7> lane(in, out);
    const unsigned votes = __ballot_sync(~0u, static_cast<int>(lane.in[0] & 1));
    lane.out[0] = votes;
    lane.out[1] = __any_sync(~0u, (lane.in[0] & 6) == 6) != 0;
    lane.out[2] = __all_sync(~0u, (lane.in[0] & 31) != 1) != 0;
    lane.out[3] = static_cast<uint32_t>(__popc(lane.in[0]));
    lane.out[4] = static_cast<uint32_t>(__ffs(static_cast<int>(lane.in[0])));
    lane.out[5] = static_cast<uint32_t>(__clz(static_cast<int>(lane.in[0])));
    lane.out[6] = static_cast<uint32_t>(__syncthreads_or(static_cast<int>(votes == 0)) != 0);
}

}  // namespace

// Throws std::invalid_argument for a name that is not here.
void run(const std::string& name, const uint32_t* in, uint32_t* out, int64_t cases) {
    const dim3 grid(static_cast<unsigned>(cases));
    const auto go = [&](auto kernel) {
        launch("golden", kernel, grid, 32, sizeof(Rows), nullptr, in, out);
    };
    if (name == "copy_async16") {
        go(copy_kernel);
    } else if (name == "load_matrices") {
        go(matrices_kernel<false>);
    } else if (name == "load_matrices_transposed") {
        go(matrices_kernel<true>);
    } else if (name == "multiply_bfloat16") {
        go(multiply_kernel<__nv_bfloat16>);
    } else if (name == "multiply_float16") {
        go(multiply_kernel<__half>);
    } else if (name == "multiply_tf32") {
        go(multiply_kernel<Tf32>);
    } else if (name == "functions") {
        go(functions_kernel);
    } else if (name == "conversions") {
        go(conversions_kernel);
    } else if (name == "shuffles") {
        go(shuffles_kernel);
    } else if (name == "votes") {
        go(votes_kernel);
    } else if (!run_hopper(name, in, out, cases)) {
        throw std::invalid_argument("no such kernel: " + name);
    }
}

}  // namespace golden

// For ctypes: null, or what went wrong.
static char message[512];
extern "C" const char* pylum_golden(const char* name, const uint32_t* in, uint32_t* out,
                                    int64_t cases) {
    try {
        golden::run(name, in, out, cases);
        return nullptr;
    } catch (const std::exception& error) {
        snprintf(message, sizeof message, "%s", error.what());
        return message;
    }
}
