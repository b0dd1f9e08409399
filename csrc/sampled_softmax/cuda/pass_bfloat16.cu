#include "sampled_softmax/cuda/pass.h"

namespace pylum::sampled_softmax {

void launch_pass_bfloat16(const Params& p, const Space& s, Of of, cudaStream_t stream) {
    launch_pass<__nv_bfloat16>(p, s, of, stream);
}

}  // namespace pylum::sampled_softmax
