// Attention of new rows and targets over histories cached in pages.
#pragma once

#include "common/attention_inputs.h"
#include "common/cpu_features.h"

namespace pylum::prefix_attention {

PYLUM_CPU_KERNEL_BF16(void forward(const AttentionInputs&))

// On the ISA in use.
void run(const AttentionInputs& p);

}  // namespace pylum::prefix_attention
