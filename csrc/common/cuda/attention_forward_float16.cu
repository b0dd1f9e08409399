#include "common/cuda/attention_forward.h"
#include "common/cuda/attention_targets.h"

namespace pylum::cuda {

void launch_forward_float16(const AttentionParams& p, cudaStream_t stream) {
    launch_forward_as<__half>(p, stream);
    launch_targets_as<__half>(p, stream);
}

}  // namespace pylum::cuda
