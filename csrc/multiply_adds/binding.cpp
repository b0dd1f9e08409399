#include "common/binding.h"

#include "multiply_adds/multiply_adds.h"

namespace pylum::multiply_adds {

static std::pair<float, int64_t> forward_py(bool bfloat16, int64_t steps) {
    Params p{.dtype = bfloat16 ? DType::kBFloat16 : DType::kFloat32,
             .factor = 1.0f,
             .addend = 1.0f,
             .steps = steps,
             .sum = 0.0f,
             .flops = 0};
    {
        py::gil_scoped_release release;
        PYLUM_CPU_CALL_BF16(p.dtype, forward, p);
    }
    return {p.sum, p.flops};
}

void register_op(py::module_& m) { m.def("multiply_adds", &forward_py); }

}  // namespace pylum::multiply_adds
