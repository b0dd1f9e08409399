// Element types of kernels: arithmetic is float32, storage float32, bfloat16 or float16.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>

#include "common/execution.h"
#include "common/tensor.h"

namespace pylum::cuda {

__device__ inline float to_float(float x) { return x; }
__device__ inline float to_float(__nv_bfloat16 x) { return __bfloat162float(x); }
__device__ inline float to_float(__half x) { return __half2float(x); }

template <typename T>
__device__ T from_float(float x);
template <>
__device__ inline float from_float<float>(float x) {
    return x;
}
template <>
__device__ inline __nv_bfloat16 from_float<__nv_bfloat16>(float x) {
    return __float2bfloat16_rn(x);
}
template <>
__device__ inline __half from_float<__half>(float x) {
    return __float2half_rn(x);
}

__device__ inline float quiet_nan() { return __int_as_float(0x7fc00000); }

// Consecutive elements that move in one access.
template <typename T, int kCount>
struct alignas(sizeof(T) * kCount) Pack {
    T at[kCount];
};

template <int kCount, typename T>
__device__ Pack<T, kCount> load_pack(const T* from) {
    return *reinterpret_cast<const Pack<T, kCount>*>(from);
}
template <int kCount, typename T>
__device__ void store_pack(T* to, const Pack<T, kCount>& pack) {
    *reinterpret_cast<Pack<T, kCount>*>(to) = pack;
}

// Elements in 16 bytes.
template <typename T>
constexpr int kPack = 16 / static_cast<int>(sizeof(T));

inline bool aligned16(const void* at) { return reinterpret_cast<uintptr_t>(at) % 16 == 0; }

__device__ inline void report_error(int32_t* errors, DeviceError error) {
    if (errors) {
        atomicOr(errors, static_cast<int32_t>(error));
    }
}

// f(T{}) with the element type of `dtype`; binding.cpp has refused every other one.
template <typename F>
void for_dtype(DType dtype, const F& f) {
    if (dtype == DType::kFloat32) {
        f(float{});
    } else if (dtype == DType::kBFloat16) {
        f(__nv_bfloat16{});
    } else {
        f(__half{});
    }
}

}  // namespace pylum::cuda
