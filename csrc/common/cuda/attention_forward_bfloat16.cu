#include "common/cuda/attention_forward.h"
#include "common/cuda/attention_targets.h"

namespace pylum::cuda {

void launch_forward_bfloat16(const AttentionParams& p, cudaStream_t stream) {
    launch_forward_as<__nv_bfloat16>(p, stream);
    launch_targets_as<__nv_bfloat16>(p, stream);
}

}  // namespace pylum::cuda
