// The emulated module holds CUDA kernels only.
#pragma once

#include "sampled_softmax/sampled_softmax.h"

namespace pylum::sampled_softmax {

inline int64_t host_workspace(const Params&) { return 0; }

}  // namespace pylum::sampled_softmax
