// Which rows of attention run on kernels of sm_90a, and their launchers.
#pragma once

#include "common/cuda/attention.h"
#include "common/cuda/tensor_map.h"

namespace pylum::cuda {

constexpr int kSm90TileRows = 128;

// History rows of the forward pass, all rows of the backward: by dtype, head sizes and
// architecture, so that a row's path depends on nothing else.
inline bool runs_on_sm90(const AttentionParams& p) {
    return p.in.dtype != DType::kFloat32 && p.in.head_dim <= 128 && p.in.value_dim <= 128 &&
           has_sm90();
}

void launch_forward_sm90(const AttentionParams& p, CUstream_st* stream);
// After launch_backward_rows_as() of the dtype.
void launch_backward_sm90(const AttentionGradients& p, CUstream_st* stream);

}  // namespace pylum::cuda
