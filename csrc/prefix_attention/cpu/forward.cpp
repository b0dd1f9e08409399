#include "common/cpu/attention_forward.h"
#include "common/prefix_attention.h"

namespace pylum::prefix_attention::PYLUM_ISA {

void forward(const AttentionInputs& p) { attention_forward(p); }

}  // namespace pylum::prefix_attention::PYLUM_ISA
