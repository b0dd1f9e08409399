#include "sampled_softmax/cuda/pass.h"

namespace pylum::sampled_softmax {

void launch_pass_float32(const Params& p, const Space& s, Of of, cudaStream_t stream) {
    launch_pass<float>(p, s, of, stream);
}

}  // namespace pylum::sampled_softmax
