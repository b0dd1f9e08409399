// The forward pass that every attention op shares; its kernels are the room of attention's.
#pragma once

#include "common/attention_inputs.h"

namespace pylum {

// On a CPU, on the ISA in use.
void run_attention(const AttentionInputs& p);

}  // namespace pylum
