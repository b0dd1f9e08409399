// The only way a kernel is launched. Included by .cu files only.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>
#include <utility>

#include "common/cuda/check.h"

namespace pylum::cuda {

// Blocks for `items` of `per_block`; kernels with more than a grid holds step by gridDim.x.
inline unsigned blocks_for(int64_t items, int64_t per_block) {
    const int64_t blocks = (items + per_block - 1) / per_block;
    return static_cast<unsigned>(blocks < INT32_MAX ? blocks : INT32_MAX);
}

// launch("rotary", run_kernel<float>, grid, threads, shared_bytes, stream, arguments...). An empty
// grid launches nothing. Allocates nothing and can be captured in a graph.
template <typename... Wanted, typename... Given>
void launch(const char* name, void (*kernel)(Wanted...), dim3 grid, unsigned threads,
            size_t shared_bytes, cudaStream_t stream, Given&&... given) {
    if (grid.x == 0 || grid.y == 0 || grid.z == 0) {
        return;
    }
    if (shared_bytes > (48 << 10)) {
        check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                   static_cast<int>(shared_bytes)),
              name);
    }
    cudaLaunchConfig_t config = {};
    config.gridDim = grid;
    config.blockDim = dim3(threads);
    config.dynamicSmemBytes = shared_bytes;
    config.stream = stream;
    check(cudaLaunchKernelEx(&config, kernel, std::forward<Given>(given)...), name);
}

}  // namespace pylum::cuda
