#include "common/cuda/attention_forward.h"
#include "common/cuda/attention_targets.h"

namespace pylum::cuda {

void launch_forward_float32(const AttentionParams& p, cudaStream_t stream) {
    launch_forward_as<float>(p, stream);
    launch_targets_as<float>(p, stream);
}

}  // namespace pylum::cuda
