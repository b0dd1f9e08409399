#include "common/binding.h"

#include "residual_norm/residual_norm.h"

namespace pylum::residual_norm {

static Dropout dropout_of(double probability, int64_t seed) {
    if (!(probability >= 0.0 && probability < 1.0)) {
        throw py::value_error("dropout must be in [0, 1), got " + std::to_string(probability));
    }
    return {.seed = static_cast<uint64_t>(seed),
            .threshold = static_cast<uint32_t>(probability * 4294967296.0),
            .keep = static_cast<float>(1.0 / (1.0 - probability))};
}

static void check_rows(const Tensor& t, const char* name, const Tensor& like) {
    expect_like(t, name, like, "branch");
    if (t.dtype != like.dtype) {
        fail_type(name, std::string(dtype_name(like.dtype)) + " like branch", t);
    }
    expect(t.dims == 2 && t.is_shape({like.size(0), like.size(1)}) && t.contiguous(), name,
           "[rows = " + std::to_string(like.size(0)) + ", width = " + std::to_string(like.size(1)) +
               "], contiguous",
           t);
}

static void check(const Tensor& branch, const Tensor& weight) {
    expect_device(branch, "branch");
    expect_floating(branch, "branch");
    expect(branch.dims == 2 && branch.contiguous(), "branch", "[rows, width], contiguous", branch);
    expect_like(weight, "weight", branch, "branch");
    if (weight.dtype != branch.dtype) {
        fail_type("weight", std::string(dtype_name(branch.dtype)) + " like branch", weight);
    }
    expect(weight.is_shape({branch.size(1)}) && weight.contiguous(), "weight",
           "[width = " + std::to_string(branch.size(1)) + "]", weight);
}

static void forward_py(const Tensor& branch, const std::optional<Tensor>& residual,
                       const Tensor& weight, double dropout, int64_t seed, double eps,
                       const Tensor& sum, const Tensor& normed, const Tensor& scales,
                       const Execution& on) {
    check(branch, weight);
    if (residual) {
        check_rows(*residual, "residual", branch);
    }
    const Forward p{.residual = residual ? residual->data : nullptr,
                    .branch = branch.data,
                    .weight = weight.data,
                    .sum = sum.data,
                    .normed = normed.data,
                    .scales = scales.as<float>(),
                    .dtype = branch.dtype,
                    .rows = branch.size(0),
                    .width = branch.size(1),
                    .eps = static_cast<float>(eps),
                    .dropout = dropout_of(dropout, seed),
                    .threads = on.threads};
    py::gil_scoped_release release;
    PYLUM_CALL(branch, on, forward, p);
}

static void backward_py(const std::optional<Tensor>& dsum, const std::optional<Tensor>& dnormed,
                        const Tensor& sum, const Tensor& weight, const Tensor& scales,
                        double dropout, int64_t seed, const Tensor& dresidual,
                        const std::optional<Tensor>& dbranch, const Tensor& dweight_parts,
                        const Tensor& dweight, const Execution& on) {
    check(sum, weight);
    if (sum.cuda && sum.size(1) > kMostCudaWidth) {
        fail_value("branch", "at most " + std::to_string(kMostCudaWidth) + " wide on cuda", sum);
    }
    if (dsum) {
        check_rows(*dsum, "dsum", sum);
    }
    if (dnormed) {
        check_rows(*dnormed, "dnormed", sum);
    }
    const Backward p{.dsum = dsum ? dsum->data : nullptr,
                     .dnormed = dnormed ? dnormed->data : nullptr,
                     .sum = sum.data,
                     .weight = weight.data,
                     .scales = scales.as<float>(),
                     .dresidual = dresidual.data,
                     .dbranch = dbranch ? dbranch->data : nullptr,
                     .dweight_parts = dweight_parts.as<float>(),
                     .dweight = dweight.as<float>(),
                     .dtype = sum.dtype,
                     .rows = sum.size(0),
                     .width = sum.size(1),
                     .dropout = dropout_of(dropout, seed),
                     .threads = on.threads};
    py::gil_scoped_release release;
    PYLUM_CALL(sum, on, backward, p);
}

void register_op(py::module_& m) {
    // Rows of dweight_parts.
    m.def("residual_norm_parts", [](const Tensor& sum) {
        const int64_t chunk = sum.cuda ? kCudaChunk : kChunk;
        return (sum.size(0) + chunk - 1) / chunk;
    });
    m.def("residual_norm_forward", &forward_py);
    m.def("residual_norm_backward", &backward_py);
}

}  // namespace pylum::residual_norm
