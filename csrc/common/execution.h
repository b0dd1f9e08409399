// How one call of an op runs: what Python's run_on(x) says.
#pragma once

#include <cstdint>

#include "common/cpu_features.h"

struct CUstream_st;

namespace pylum {

// Set in the error word of a device where a kernel met a value that the host could not check; the
// rows it touches become NaN and updates from them are skipped. pylum.check() reads the word.
enum DeviceError : int32_t {
    kBadPositions = 1,
    kBadOffsets = 2,
    kBadIndices = 4,
    kBadPages = 8,
    kBadMask = 16,
    kBadThresholds = 32,
    kBadWeights = 64,
};

struct Execution {
    int threads;          // of a CPU kernel
    CUstream_st* stream;  // the caller's current stream on the tensors' device
    int32_t* errors;      // the error word of that device; null on a CPU
};

}  // namespace pylum

// PYLUM_CALL(x, on, run, params) in the room's namespace calls launch_run(params, stream) where the
// tensor x is on a CUDA device, and the CPU kernel run(params) where it is not; PYLUM_CALL_OR names
// the host's call itself.
#ifdef PYLUM_CUDA
#include "common/cuda/device.h"
#define PYLUM_CALL_OR(tensor, on, fn, host_call, ...)          \
    do {                                                       \
        if ((tensor).cuda) {                                   \
            ::pylum::cuda::DeviceGuard guard((tensor).device); \
            launch_##fn(__VA_ARGS__, (on).stream);             \
        } else {                                               \
            host_call;                                         \
        }                                                      \
    } while (false)
#else
#define PYLUM_CALL_OR(tensor, on, fn, host_call, ...) host_call
#endif
#define PYLUM_CALL(tensor, on, fn, ...) \
    PYLUM_CALL_OR(tensor, on, fn, PYLUM_CPU_CALL(fn, __VA_ARGS__), __VA_ARGS__)
