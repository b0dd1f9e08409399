#include "common/cuda/attention_backward.h"
#include "common/cuda/attention_backward_targets.h"

namespace pylum::cuda {

void launch_backward_float32(const AttentionGradients& p, cudaStream_t stream) {
    launch_backward_rows_as<float>(p, stream);
    launch_backward_as<float>(p, stream);
}

}  // namespace pylum::cuda
