#include <cstring>

#include "common/cuda/tensor_map.h"

namespace pylum::cuda {

using Encode = decltype(&cuTensorMapEncodeTiled);

// The driver's function without linking it: the module loads where there is no driver.
static Encode encode_function() {
    void* function = nullptr;
    cudaDriverEntryPointQueryResult found;
    const cudaError_t code = cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &function,
                                                              12000, cudaEnableDefault, &found);
    return code == cudaSuccess && found == cudaDriverEntryPointSuccess
               ? reinterpret_cast<Encode>(function)
               : nullptr;
}

bool has_sm90() {
    static const bool built = std::strstr(PYLUM_CUDA_ARCHITECTURES, "90a") != nullptr;
    int device = 0, major = 0, minor = 0;
    return built && cudaGetDevice(&device) == cudaSuccess &&
           cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device) ==
               cudaSuccess &&
           cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device) ==
               cudaSuccess &&
           major == 9 && minor == 0;
}

bool encode_map(TensorMap* map, const void* at, const int64_t (&dims)[3],
                const int64_t (&strides)[3], int box_rows) {
    static const Encode encode = encode_function();
    cuuint64_t sizes[3], bytes[2];
    for (int i = 0; i < 3; ++i) {
        sizes[i] = static_cast<cuuint64_t>(dims[i]);
        if (dims[i] < 1 || dims[i] > UINT32_MAX) {
            return false;
        }
    }
    for (int i = 0; i < 2; ++i) {
        bytes[i] = static_cast<cuuint64_t>(strides[i + 1]) * 2;
        if (strides[i + 1] < 1 || bytes[i] % 16 != 0) {
            return false;
        }
    }
    if (!encode || reinterpret_cast<uintptr_t>(at) % 16 != 0) {
        return false;
    }
    const cuuint32_t box[3] = {64, 1, static_cast<cuuint32_t>(box_rows)}, steps[3] = {1, 1, 1};
    return encode(map, CU_TENSOR_MAP_DATA_TYPE_UINT16, 3, const_cast<void*>(at), sizes, bytes, box,
                  steps, CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B,
                  CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
                  CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE) == CUDA_SUCCESS;
}

}  // namespace pylum::cuda
