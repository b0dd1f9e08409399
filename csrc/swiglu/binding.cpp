#include "common/binding.h"

#include "swiglu/swiglu.h"

namespace pylum::swiglu {

static Params check(const Tensor& gate_up, const Execution& on) {
    expect_device(gate_up, "gate_up");
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
            .threads = on.threads};
}

static void forward_py(const Tensor& gate_up, const Tensor& out, const Execution& on) {
    Params p = check(gate_up, on);
    p.out = out.data;
    py::gil_scoped_release release;
    PYLUM_CALL(gate_up, on, forward, p);
}

static void backward_py(const Tensor& dout, const Tensor& gate_up, const Tensor& dgate_up,
                        const Execution& on) {
    Params p = check(gate_up, on);
    expect_like(dout, "dout", gate_up, "gate_up");
    if (dout.dtype != gate_up.dtype) {
        fail_type("dout", std::string(dtype_name(gate_up.dtype)) + " like gate_up", dout);
    }
    expect(dout.is_shape({p.rows, p.width}) && dout.contiguous(), "dout",
           "[rows, width], contiguous", dout);
    p.dout = dout.data;
    p.dgate_up = dgate_up.data;
    py::gil_scoped_release release;
    PYLUM_CALL(gate_up, on, backward, p);
}

void register_op(py::module_& m) {
    m.def("swiglu_forward", &forward_py);
    m.def("swiglu_backward", &backward_py);
}

}  // namespace pylum::swiglu
