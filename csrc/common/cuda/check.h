// CUDA errors become exceptions that name the call.
#pragma once

#include <cuda_runtime.h>

#include <stdexcept>
#include <string>

namespace pylum::cuda {

inline void check(cudaError_t code, const char* call) {
    if (code != cudaSuccess) {
        throw std::runtime_error(std::string(call) + " failed: " + cudaGetErrorName(code) + ": " +
                                 cudaGetErrorString(code));
    }
}

}  // namespace pylum::cuda
