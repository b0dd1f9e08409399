// What the CUDA runtime finds on this machine; built only with CUDA.
#pragma once

#include <string>

namespace pylum::cuda {

// Number of usable devices; 0 without a driver or a device, never an error.
int device_count();

// Compute capabilities the module was compiled for, e.g. "80 90a".
std::string architectures();

// CUDA runtime version, e.g. 13000.
int runtime_version();

// The tensors' device is the current one while this lives.
class DeviceGuard {
  public:
    explicit DeviceGuard(int device);
    ~DeviceGuard();
    DeviceGuard(const DeviceGuard&) = delete;
    DeviceGuard& operator=(const DeviceGuard&) = delete;

  private:
    int before_ = 0, device_;
};

}  // namespace pylum::cuda
