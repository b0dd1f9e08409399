#include "attention/attention.h"
#include "common/cpu/attention_forward.h"

namespace pylum::attention::PYLUM_ISA {

void forward(const AttentionInputs& p) { attention_forward(p); }

}  // namespace pylum::attention::PYLUM_ISA
