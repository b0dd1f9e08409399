#include "sampled_softmax/cuda/pass.h"

namespace pylum::sampled_softmax {

void launch_pass_float16(const Params& p, const Space& s, Of of, cudaStream_t stream) {
    launch_pass<__half>(p, s, of, stream);
}

}  // namespace pylum::sampled_softmax
