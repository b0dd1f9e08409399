#include "common/cuda/attention_backward.h"
#include "common/cuda/attention_backward_targets.h"
#include "common/cuda/attention_sm90.h"

namespace pylum::cuda {

void launch_backward_float16(const AttentionGradients& p, cudaStream_t stream) {
    launch_backward_rows_as<__half>(p, stream);
    runs_on_sm90(p.inputs) ? launch_backward_sm90(p, stream)
                           : launch_backward_as<__half>(p, stream);
}

}  // namespace pylum::cuda
