#include <cuda_runtime.h>

#include "common/cuda/device.h"

namespace pylum::cuda {

int device_count() {
    int count = 0;
    if (cudaGetDeviceCount(&count) != cudaSuccess) {
        cudaGetLastError();  // clear: no driver is an answer here, not an error
        return 0;
    }
    return count;
}

std::string architectures() { return PYLUM_CUDA_ARCHITECTURES; }

int runtime_version() {
    int version = 0;
    cudaRuntimeGetVersion(&version);
    return version;
}

}  // namespace pylum::cuda
