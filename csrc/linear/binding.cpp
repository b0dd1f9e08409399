#include "common/binding.h"

#include "linear/linear.h"

namespace pylum::linear {

constexpr int64_t kMaxDepth = 4096;

static void check(const Tensor& t, const char* name) {
    expect_cpu(t, name);
    expect_dtype(t, name, DType::kFloat32);
    expect(t.dims == 2 && t.contiguous(), name, "[rows, columns], contiguous", t);
}

static void product_py(const Tensor& x, const Tensor& weight, bool transposed, const Tensor& packed,
                       const Tensor& y, int threads) {
    check(x, "x");
    check(weight, "weight");
    const int64_t depth = weight.size(transposed ? 0 : 1);
    expect(x.size(1) == depth, "x", "[total, " + std::to_string(depth) + "] like weight", x);
    if (depth > kMaxDepth) {
        throw py::value_error("weight must have at most 4096 columns, got " +
                              std::to_string(depth));
    }
    const Product p{.x = x.as<float>(),
                    .weight = weight.as<float>(),
                    .transposed = transposed,
                    .packed = packed.as<float>(),
                    .y = y.as<float>(),
                    .total = x.size(0),
                    .depth = depth,
                    .width = y.size(1),
                    .threads = threads};
    py::gil_scoped_release release;
    PYLUM_CPU_CALL(product, p);
}

static void gradient_py(const Tensor& dy, const Tensor& x, const Tensor& workspace,
                        const Tensor& dweight, int threads) {
    check(dy, "dy");
    check(x, "x");
    expect(dy.size(0) == x.size(0), "dy", "[total = " + std::to_string(x.size(0)) + ", width]", dy);
    const Gradient p{.dy = dy.as<float>(),
                     .x = x.as<float>(),
                     .workspace = workspace.as<float>(),
                     .dweight = dweight.as<float>(),
                     .total = x.size(0),
                     .depth = x.size(1),
                     .width = dy.size(1),
                     .threads = threads};
    py::gil_scoped_release release;
    PYLUM_CPU_CALL(gradient, p);
}

void register_op(py::module_& m) {
    m.attr("linear_panel") = kColumns;
    m.attr("linear_pad") = kPad;
    m.attr("linear_strip") = kStrip;
    m.attr("linear_gradient_chunk") = kGradientChunk;
    m.def("linear_product", &product_py);
    m.def("linear_gradient", &gradient_py);
}

}  // namespace pylum::linear
