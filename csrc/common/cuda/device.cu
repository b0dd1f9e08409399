#include <cuda_runtime.h>

#include "common/cuda/check.h"
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

DeviceGuard::DeviceGuard(int device) : device_(device) {
    check(cudaGetDevice(&before_), "cudaGetDevice");
    if (before_ != device_) {
        check(cudaSetDevice(device_), "cudaSetDevice");
    }
}

DeviceGuard::~DeviceGuard() {
    if (before_ != device_) {
        cudaSetDevice(before_);
    }
}

}  // namespace pylum::cuda
