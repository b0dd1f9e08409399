#include "common/binding.h"

#include "rotary/rotary.h"

namespace pylum::rotary {

static void check_heads(const Tensor& t, const char* name, const Tensor& fused, int64_t heads,
                        int64_t head_dim) {
    expect_like(t, name, fused, "x");
    if (t.dtype != fused.dtype) {
        fail_type(name, std::string(dtype_name(fused.dtype)) + " like x", t);
    }
    expect(t.is_shape({fused.size(0), heads, head_dim}) && t.contiguous(), name,
           "[total, " + std::to_string(heads) + ", " + std::to_string(head_dim) + "], contiguous",
           t);
}

static void run_py(const Tensor& fused, const std::optional<Tensor>& q,
                   const std::optional<Tensor>& k, const std::optional<Tensor>& v,
                   const Tensor& positions, const Tensor& cos, const Tensor& sin, int64_t heads,
                   int64_t kv_heads, bool inverse, const Execution& on) {
    const int64_t groups = heads + 2 * kv_heads;
    if (heads < 0 || kv_heads < 0 || groups == 0) {
        throw py::value_error("heads and kv_heads must be at least 0 and not both 0, got " +
                              std::to_string(heads) + " and " + std::to_string(kv_heads));
    }
    expect_device(fused, "x");
    expect_floating(fused, "x");
    expect(fused.dims == 2 && fused.contiguous() && fused.size(1) % (2 * groups) == 0, "x",
           "[total, (heads + 2 kv_heads) * head_dim] with " + std::to_string(groups) +
               " even heads, contiguous",
           fused);
    const int64_t total = fused.size(0), head_dim = fused.size(1) / groups;
    if (q) {
        check_heads(*q, "dq", fused, heads, head_dim);
    }
    if (k) {
        check_heads(*k, "dk", fused, kv_heads, head_dim);
    }
    if (v) {
        check_heads(*v, "dv", fused, kv_heads, head_dim);
    }
    expect_like(positions, "positions", fused, "x");
    expect_dtype(positions, "positions", DType::kInt64);
    expect(positions.is_shape({total}) && positions.contiguous(), "positions",
           "[total = " + std::to_string(total) + "], contiguous", positions);
    for (const auto& [table, name] : {std::pair{&cos, "cos"}, std::pair{&sin, "sin"}}) {
        expect_like(*table, name, fused, "x");
        expect_dtype(*table, name, DType::kFloat32);
        expect(table->dims == 2 && table->size(0) == cos.size(0) &&
                   table->size(1) == head_dim / 2 && table->contiguous(),
               name, "[angles, head_dim / 2 = " + std::to_string(head_dim / 2) + "], contiguous",
               *table);
    }
    const int64_t* position = positions.as<int64_t>();
    for (int64_t i = 0; i < total && !fused.cuda; ++i) {
        if (position[i] < 0 || position[i] >= cos.size(0)) {
            throw py::value_error("positions must be in [0, " + std::to_string(cos.size(0)) +
                                  "), got " + std::to_string(position[i]));
        }
    }
    const Params p{.fused = fused.data,
                   .q = q ? q->data : nullptr,
                   .k = k ? k->data : nullptr,
                   .v = v ? v->data : nullptr,
                   .dtype = fused.dtype,
                   .positions = position,
                   .cos = cos.as<float>(),
                   .sin = sin.as<float>(),
                   .total = total,
                   .heads = heads,
                   .kv_heads = kv_heads,
                   .head_dim = head_dim,
                   .angles = cos.size(0),
                   .inverse = inverse,
                   .threads = on.threads,
                   .errors = on.errors};
    py::gil_scoped_release release;
    PYLUM_CALL(fused, on, run, p);
}

void register_op(py::module_& m) { m.def("rotary_run", &run_py); }

}  // namespace pylum::rotary
