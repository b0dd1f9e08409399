#include "common/binding.h"

#include "dot_interaction/dot_interaction.h"

namespace pylum::dot_interaction {

static Params check(const Tensor& vectors, const Execution& on) {
    expect_device(vectors, "vectors");
    expect_floating(vectors, "vectors");
    expect(vectors.dims == 3 && vectors.size(2) <= kMaxDim && vectors.contiguous(), "vectors",
           "[batch, count, dim at most 512], contiguous", vectors);
    return {.vectors = vectors.data,
            .dout = nullptr,
            .out = nullptr,
            .dvectors = nullptr,
            .dtype = vectors.dtype,
            .batch = vectors.size(0),
            .count = vectors.size(1),
            .dim = vectors.size(2),
            .threads = on.threads};
}

static void forward_py(const Tensor& vectors, const Tensor& out, const Execution& on) {
    Params p = check(vectors, on);
    p.out = out.data;
    py::gil_scoped_release release;
    PYLUM_CALL(vectors, on, forward, p);
}

static void backward_py(const Tensor& dout, const Tensor& vectors, const Tensor& dvectors,
                        const Execution& on) {
    Params p = check(vectors, on);
    expect_like(dout, "dout", vectors, "vectors");
    if (dout.dtype != vectors.dtype) {
        fail_type("dout", std::string(dtype_name(vectors.dtype)) + " like vectors", dout);
    }
    const int64_t pairs = p.count * (p.count - 1) / 2;
    expect(dout.is_shape({p.batch, pairs}) && dout.contiguous(), "dout",
           "[batch, count (count - 1) / 2], contiguous", dout);
    p.dout = dout.data;
    p.dvectors = dvectors.data;
    py::gil_scoped_release release;
    PYLUM_CALL(vectors, on, backward, p);
}

void register_op(py::module_& m) {
    m.def("dot_interaction_forward", &forward_py);
    m.def("dot_interaction_backward", &backward_py);
}

}  // namespace pylum::dot_interaction
