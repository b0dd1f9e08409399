// A tensor as the copy engine of sm_90 sees it; made on the host, passed to kernels by value as a
// __grid_constant__ parameter.
#pragma once

#include <cuda.h>
#include <cuda_runtime.h>

#include <cstdint>

namespace pylum::cuda {

using TensorMap = CUtensorMap;

// The module has code of sm_90a and the current device runs it.
bool has_sm90();

// Elements of 2 bytes of a tensor of three dimensions, from the least to the greatest: dims[i]
// apart by strides[i] elements, strides[0] of 1. A box is [box_rows] of the last dimension by 64 of
// the first. False where the engine does not take it: addresses and strides must be multiples of
// 16 bytes.
bool encode_map(TensorMap* map, const void* at, const int64_t (&dims)[3],
                const int64_t (&strides)[3], int box_rows);

}  // namespace pylum::cuda
