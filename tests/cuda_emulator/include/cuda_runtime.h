// What the kernels and launchers of csrc use of the CUDA runtime, on the emulator.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstring>
#include <tuple>
#include <type_traits>
#include <utility>

#include "emulator.h"

#define __global__
#define __device__
#define __host__
#define __constant__ static const
#define __noinline__ __attribute__((noinline))
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(...)
#define __grid_constant__

struct CUstream_st;
using cudaStream_t = CUstream_st*;
enum cudaError_t { cudaSuccess = 0, cudaErrorInvalidValue = 1 };
enum cudaFuncAttribute { cudaFuncAttributeMaxDynamicSharedMemorySize = 8 };
struct cudaLaunchAttribute;
struct cudaLaunchConfig_t {
    dim3 gridDim, blockDim;
    size_t dynamicSmemBytes;
    cudaStream_t stream;
    cudaLaunchAttribute* attrs;
    unsigned numAttrs;
};

inline const char* cudaGetErrorName(cudaError_t) { return "cudaErrorInvalidValue"; }
inline const char* cudaGetErrorString(cudaError_t) { return "invalid argument"; }
inline cudaError_t cudaGetLastError() { return cudaSuccess; }
inline cudaError_t cudaGetDeviceCount(int* count) { return *count = 1, cudaSuccess; }
inline cudaError_t cudaRuntimeGetVersion(int* version) { return *version = 0, cudaSuccess; }
inline cudaError_t cudaGetDevice(int* device) { return *device = 0, cudaSuccess; }
inline cudaError_t cudaSetDevice(int device) {
    return device == 0 ? cudaSuccess : cudaErrorInvalidValue;
}
template <typename Kernel>
cudaError_t cudaFuncSetAttribute(Kernel*, cudaFuncAttribute, int) {
    return cudaSuccess;
}
inline cudaError_t cudaMemsetAsync(void* at, int value, size_t bytes, cudaStream_t) {
    std::memset(at, value, bytes);
    return cudaSuccess;
}

template <typename... Wanted, typename... Given>
__attribute__((no_sanitize("thread"))) cudaError_t
cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*kernel)(Wanted...), Given&&... given) {
    struct Call {
        void (*kernel)(Wanted...);
        std::tuple<std::decay_t<Wanted>...> arguments;
    } call{kernel, {std::forward<Given>(given)...}};
    emulator::launch(
        config->gridDim, config->blockDim, config->dynamicSmemBytes,
        [](void* context) {
            auto* c = static_cast<Call*>(context);
            std::apply(c->kernel, c->arguments);
        },
        &call);
    return cudaSuccess;
}

#define PYLUM_VECTORS(type, name, align2, align4)                    \
    struct alignas(align2) name##2 { type x, y; };                   \
    struct name##3 { type x, y, z; };                                \
    struct alignas(align4) name##4 { type x, y, z, w; };             \
    inline name##2 make_##name##2(type x, type y) { return {x, y}; } \
    inline name##4 make_##name##4(type x, type y, type z, type w) { return {x, y, z, w}; }
PYLUM_VECTORS(float, float, 8, 16)
PYLUM_VECTORS(int, int, 8, 16)
PYLUM_VECTORS(unsigned, uint, 8, 16)
PYLUM_VECTORS(long long, longlong, 16, 16)
PYLUM_VECTORS(unsigned short, ushort, 4, 8)
#undef PYLUM_VECTORS

using std::max;
using std::min;

inline void __syncthreads(emulator::Place place = emulator::Place::current()) {
    emulator::block_barrier(place);
}
inline int __syncthreads_or(int predicate, emulator::Place place = emulator::Place::current()) {
    return emulator::block_or(predicate != 0, place);
}
inline void __threadfence() {}
inline void __threadfence_block() {}

inline void __syncwarp(unsigned mask = ~0u, emulator::Place place = emulator::Place::current()) {
    emulator::warp_operation(mask, [](void* const*) {}, &mask, place);
}

namespace emulator {

template <typename T>
struct Shuffle {
    T value, result;
    int source;
    bool outside;
};

// Every lane takes the value of the lane it names.
template <typename T>
T shuffle(unsigned mask, T value, int source, const Place& place) {
    Shuffle<T> s{value, value, source, false};
    warp_operation(
        mask,
        [](void* const* all) {
            for (int i = 0; i < kWarp; ++i) {
                if (auto* own = static_cast<Shuffle<T>*>(all[i])) {
                    auto* other = static_cast<Shuffle<T>*>(all[own->source]);
                    own->outside = !other;
                    own->result = other ? other->value : own->value;
                }
            }
        },
        &s, place);
    if (s.outside) {
        fail_at("a shuffle reads a lane that takes no part,", place);
    }
    return s.result;
}

struct Vote {
    bool predicate;
    unsigned result;
};

inline unsigned ballot(unsigned mask, bool predicate, const Place& place) {
    Vote v{predicate, 0};
    warp_operation(
        mask,
        [](void* const* all) {
            unsigned bits = 0;
            for (int i = 0; i < kWarp; ++i) {
                bits |= all[i] && static_cast<Vote*>(all[i])->predicate ? 1u << i : 0u;
            }
            for (int i = 0; i < kWarp; ++i) {
                if (all[i]) {
                    static_cast<Vote*>(all[i])->result = bits;
                }
            }
        },
        &v, place);
    return v.result;
}

template <typename T, typename F>
__attribute__((no_sanitize("thread"))) T atomic(T* at, const F& f, const Place& place) {
    access(at, sizeof(T), Access::kAtomic, place);
    const T old = *at;
    *at = f(old);
    return old;
}

}  // namespace emulator

#define PYLUM_PLACE emulator::Place place = emulator::Place::current()

template <typename T>
T __shfl_sync(unsigned mask, T value, int source, int width = 32, PYLUM_PLACE) {
    const int own = emulator::lane();
    return emulator::shuffle(mask, value, own / width * width + (source & (width - 1)), place);
}
template <typename T>
T __shfl_xor_sync(unsigned mask, T value, int bits, int width = 32, PYLUM_PLACE) {
    const int own = emulator::lane(), other = own ^ bits;
    return emulator::shuffle(mask, value, other >= own / width * width + width ? own : other,
                             place);
}
template <typename T>
T __shfl_up_sync(unsigned mask, T value, unsigned delta, int width = 32, PYLUM_PLACE) {
    const int own = emulator::lane(), other = own - static_cast<int>(delta);
    return emulator::shuffle(mask, value, other < own / width * width ? own : other, place);
}
template <typename T>
T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = 32, PYLUM_PLACE) {
    const int own = emulator::lane(), other = own + static_cast<int>(delta);
    return emulator::shuffle(mask, value, other >= own / width * width + width ? own : other,
                             place);
}
inline unsigned __ballot_sync(unsigned mask, int predicate, PYLUM_PLACE) {
    return emulator::ballot(mask, predicate != 0, place);
}
inline int __any_sync(unsigned mask, int predicate, PYLUM_PLACE) {
    return emulator::ballot(mask, predicate != 0, place) != 0;
}
inline int __all_sync(unsigned mask, int predicate, PYLUM_PLACE) {
    return emulator::ballot(mask, predicate == 0, place) == 0;
}

template <typename T>
T atomicAdd(T* at, std::type_identity_t<T> value, PYLUM_PLACE) {
    return emulator::atomic(at, [&](T old) { return static_cast<T>(old + value); }, place);
}
template <typename T>
T atomicMax(T* at, std::type_identity_t<T> value, PYLUM_PLACE) {
    return emulator::atomic(at, [&](T old) { return old < value ? value : old; }, place);
}
template <typename T>
T atomicMin(T* at, std::type_identity_t<T> value, PYLUM_PLACE) {
    return emulator::atomic(at, [&](T old) { return value < old ? value : old; }, place);
}
template <typename T>
T atomicOr(T* at, std::type_identity_t<T> value, PYLUM_PLACE) {
    return emulator::atomic(at, [&](T old) { return static_cast<T>(old | value); }, place);
}
template <typename T>
T atomicAnd(T* at, std::type_identity_t<T> value, PYLUM_PLACE) {
    return emulator::atomic(at, [&](T old) { return static_cast<T>(old & value); }, place);
}
template <typename T>
T atomicExch(T* at, std::type_identity_t<T> value, PYLUM_PLACE) {
    return emulator::atomic(at, [&](T) { return value; }, place);
}
template <typename T>
T atomicCAS(T* at, std::type_identity_t<T> expected, std::type_identity_t<T> value, PYLUM_PLACE) {
    return emulator::atomic(at, [&](T old) { return old == expected ? value : old; }, place);
}

template <typename T>
T __ldg(const T* at) {
    return *at;
}
template <typename T>
T __ldcs(const T* at) {
    return *at;
}
template <typename T>
void __stcs(T* at, std::type_identity_t<T> value) {
    *at = value;
}

inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __popcll(unsigned long long x) { return __builtin_popcountll(x); }
inline int __clz(int x) { return x ? __builtin_clz(static_cast<unsigned>(x)) : 32; }
inline int __clzll(long long x) {
    return x ? __builtin_clzll(static_cast<unsigned long long>(x)) : 64;
}
inline int __ffs(int x) { return __builtin_ffs(x); }
inline int __ffsll(long long x) { return __builtin_ffsll(x); }
inline unsigned __brev(unsigned x) {
    unsigned y = 0;
    for (int i = 0; i < 32; ++i) {
        y |= (x >> i & 1u) << (31 - i);
    }
    return y;
}

template <typename To, typename From>
To pylum_bits(From from) {
    static_assert(sizeof(To) == sizeof(From));
    To to;
    std::memcpy(&to, &from, sizeof to);
    return to;
}
inline int __float_as_int(float x) { return pylum_bits<int>(x); }
inline unsigned __float_as_uint(float x) { return pylum_bits<unsigned>(x); }
inline float __int_as_float(int x) { return pylum_bits<float>(x); }
inline float __uint_as_float(unsigned x) { return pylum_bits<float>(x); }

inline long long __float2ll_rn(float x) { return std::llrint(x); }
inline float __ll2float_rn(long long x) { return static_cast<float>(x); }
inline float __uint2float_rz(unsigned x) {
    const float nearest = static_cast<float>(x);
    return nearest > static_cast<double>(x) ? std::nextafter(nearest, 0.0f) : nearest;
}

inline float __expf(float x) { return std::exp(x); }
inline float __logf(float x) { return std::log(x); }
inline float __log2f(float x) { return std::log2(x); }
inline float __fdividef(float x, float y) { return x / y; }
inline float __frcp_rn(float x) { return 1.0f / x; }
inline float __fsqrt_rn(float x) { return std::sqrt(x); }
inline float __fmul_rn(float x, float y) { return x * y; }
inline float __fadd_rn(float x, float y) { return x + y; }
inline float __fmaf_rn(float x, float y, float z) { return std::fma(x, y, z); }
inline float rsqrtf(float x) { return 1.0f / std::sqrt(x); }
inline float __saturatef(float x) { return x > 0.0f ? (x < 1.0f ? x : 1.0f) : 0.0f; }
inline unsigned __umulhi(unsigned x, unsigned y) {
    return static_cast<unsigned>((static_cast<unsigned long long>(x) * y) >> 32);
}
inline unsigned long long __umul64hi(unsigned long long x, unsigned long long y) {
    return static_cast<unsigned long long>((static_cast<unsigned __int128>(x) * y) >> 64);
}

#undef PYLUM_PLACE
