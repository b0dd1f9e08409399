#include "attention/attention.h"
#include "common/attention_checks.h"

namespace pylum::attention {

static AttentionInputs inputs(const Tensor& q, const Tensor& k, const Tensor& v,
                              const BatchDescription& batch, bool silu, double scale,
                              const std::optional<Tensor>& score_scales, double score_scale,
                              const Tensor& out, const Tensor& lse, int threads) {
    AttentionInputs p = describe_inputs(q, k, v, silu, scale, score_scales, score_scale);
    describe_work(p, batch, threads);
    p.out = out.data;
    p.lse = silu ? nullptr : lse.as<float>();
    return p;
}

static void forward_py(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& offsets,
                       const std::optional<Tensor>& num_context,
                       const std::optional<Tensor>& num_targets,
                       const std::optional<Tensor>& group_offsets,
                       const std::optional<Tensor>& visible, int64_t window, int64_t min_full,
                       bool silu, double scale, const std::optional<Tensor>& score_scales,
                       double score_scale, const Tensor& out, const Tensor& lse, int threads) {
    check_heads(q, k, v);
    check_rows(q, k, "k");
    check_rows(q, v, "v");
    const BatchDescription batch(
        offsets, q.size(0), nullptr,
        {num_context, num_targets, group_offsets, visible, window, min_full});
    const AttentionInputs p =
        inputs(q, k, v, batch, silu, scale, score_scales, score_scale, out, lse, threads);
    py::gil_scoped_release release;
    PYLUM_CPU_CALL(forward, p);
}

static void backward_py(const Tensor& dout, const Tensor& q, const Tensor& k, const Tensor& v,
                        const Tensor& offsets, const std::optional<Tensor>& num_context,
                        const std::optional<Tensor>& num_targets,
                        const std::optional<Tensor>& group_offsets,
                        const std::optional<Tensor>& visible, int64_t window, int64_t min_full,
                        bool silu, double scale, const std::optional<Tensor>& score_scales,
                        double score_scale, const Tensor& out, const Tensor& lse, const Tensor& dq,
                        const Tensor& dk, const Tensor& dv, int threads) {
    check_heads(q, k, v);
    check_rows(q, k, "k");
    check_rows(q, v, "v");
    const BatchDescription batch(
        offsets, q.size(0), nullptr,
        {num_context, num_targets, group_offsets, visible, window, min_full});
    const AttentionInputs p =
        inputs(q, k, v, batch, silu, scale, score_scales, score_scale, out, lse, threads);
    if (dout.dtype != q.dtype) {
        fail_type("dout", std::string(dtype_name(q.dtype)) + " like q", dout);
    }
    expect(dout.is_shape({q.size(0), q.size(1), v.size(2)}) && dout.last_contiguous(), "dout",
           "[total, heads, value_dim], last dimension contiguous", dout);
    const BackwardParams params{.in = p,
                                .dout = dout.data,
                                .dout_row = dout.stride(0),
                                .dout_head = dout.stride(1),
                                .dk = dk.as<float>(),
                                .dv = dv.as<float>(),
                                .dq = dq.data,
                                .order = batch.order().data()};
    py::gil_scoped_release release;
    PYLUM_CPU_CALL(backward, params);
}

void register_op(py::module_& m) {
    m.def("attention_forward", &forward_py);
    m.def("attention_backward", &backward_py);
}

}  // namespace pylum::attention
