#include "common/binding.h"

#include "swiglu/swiglu.h"

namespace pylum::swiglu {

static Params check(const Tensor& gate_up, int threads) {
    expect_cpu(gate_up, "gate_up");
    expect_floating(gate_up, "gate_up");
    expect(gate_up.dims == 2 && gate_up.size(1) % 2 == 0 && gate_up.contiguous(), "gate_up",
           "[rows, 2 * width], contiguous", gate_up);
    return {.gate_up = gate_up.data,
            .dout = nullptr,
            .out = nullptr,
            .dgate_up = nullptr,
            .dtype = gate_up.dtype,
            .rows = gate_up.size(0),
            .width = gate_up.size(1) / 2,
            .threads = threads};
}

static void forward_py(const Tensor& gate_up, const Tensor& out, int threads) {
    Params p = check(gate_up, threads);
    p.out = out.data;
    py::gil_scoped_release release;
    PYLUM_CPU_CALL(forward, p);
}

static void backward_py(const Tensor& dout, const Tensor& gate_up, const Tensor& dgate_up,
                        int threads) {
    Params p = check(gate_up, threads);
    if (dout.dtype != gate_up.dtype) {
        fail_type("dout", std::string(dtype_name(gate_up.dtype)) + " like gate_up", dout);
    }
    expect(dout.is_shape({p.rows, p.width}) && dout.contiguous(), "dout",
           "[rows, width], contiguous", dout);
    p.dout = dout.data;
    p.dgate_up = dgate_up.data;
    py::gil_scoped_release release;
    PYLUM_CPU_CALL(backward, p);
}

void register_op(py::module_& m) {
    m.def("swiglu_forward", &forward_py);
    m.def("swiglu_backward", &backward_py);
}

}  // namespace pylum::swiglu
