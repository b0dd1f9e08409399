#include "attention/attention.h"
#include "common/attention_checks.h"
#include "common/attention_kernel.h"
#include "common/device_attention.h"

void pylum::run_attention(const AttentionInputs& p) {
    using namespace attention;
    PYLUM_CPU_CALL_AMX(p.dtype, forward, p);
}

namespace pylum::attention {

static AttentionInputs inputs(const Tensor& q, const Tensor& k, const Tensor& v,
                              const BatchDescription& batch, bool silu, double scale,
                              const std::optional<Tensor>& score_scales, double score_scale,
                              const BiasDescription& bias, const Tensor& out, const Tensor& lse,
                              int threads) {
    AttentionInputs p = describe_inputs(q, k, v, silu, scale, score_scales, score_scale);
    p.bias = bias.bias();
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
                       double score_scale, const std::optional<Tensor>& position_table,
                       const std::optional<Tensor>& time_table,
                       const std::optional<Tensor>& thresholds,
                       const std::optional<Tensor>& timestamps,
                       const std::optional<Tensor>& query_times, const Tensor& out,
                       const Tensor& lse, [[maybe_unused]] const std::optional<Tensor>& workspace,
                       [[maybe_unused]] const std::optional<Tensor>& parts, const Execution& on) {
    check_heads(q, k, v);
    check_rows(q, k, "k");
    check_rows(q, v, "v");
    const MaskTensors mask{num_context, num_targets, group_offsets, visible, window, min_full};
    const BiasTensors tables{position_table, time_table, thresholds, timestamps, query_times};
#ifdef PYLUM_CUDA
    if (q.cuda) {
        AttentionInputs in = describe_inputs(q, k, v, silu, scale, score_scales, score_scale);
        in.out = out.data;
        in.lse = silu ? nullptr : lse.as<float>();
        const cuda::AttentionParams p = device_attention(in, q, k, offsets, std::nullopt, 0, mask,
                                                         tables, workspace, parts, on);
        py::gil_scoped_release release;
        const cuda::DeviceGuard guard(q.device);
        cuda::launch_attention_forward(p, on.stream);
        return;
    }
#endif
    const BatchDescription batch(offsets, q.size(0), nullptr, mask);
    const BiasDescription bias(tables, batch, q.size(0), silu);
    const AttentionInputs p =
        inputs(q, k, v, batch, silu, scale, score_scales, score_scale, bias, out, lse, on.threads);
    py::gil_scoped_release release;
    run_attention(p);
}

static void check_dout(const Tensor& dout, const Tensor& q, const Tensor& v) {
    expect_like(dout, "dout", q, "q");
    if (dout.dtype != q.dtype) {
        fail_type("dout", std::string(dtype_name(q.dtype)) + " like q", dout);
    }
    expect(dout.is_shape({q.size(0), q.size(1), v.size(2)}) && dout.last_contiguous(), "dout",
           "[total, heads, value_dim], last dimension contiguous", dout);
}

static void backward_py(
    const Tensor& dout, const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& offsets,
    const std::optional<Tensor>& num_context, const std::optional<Tensor>& num_targets,
    const std::optional<Tensor>& group_offsets, const std::optional<Tensor>& visible,
    int64_t window, int64_t min_full, bool silu, double scale,
    const std::optional<Tensor>& score_scales, double score_scale,
    const std::optional<Tensor>& position_table, const std::optional<Tensor>& time_table,
    const std::optional<Tensor>& thresholds, const std::optional<Tensor>& timestamps,
    const std::optional<Tensor>& query_times, const Tensor& out, const Tensor& lse,
    const Tensor& dq, const Tensor& dk, const Tensor& dv, const Tensor& workspace,
    const std::optional<Tensor>& dbias, const std::optional<Tensor>& dtables, int threads) {
    check_heads(q, k, v);
    check_rows(q, k, "k");
    check_rows(q, v, "v");
    expect_cpu(q, "q");
    const BatchDescription batch(
        offsets, q.size(0), nullptr,
        {num_context, num_targets, group_offsets, visible, window, min_full});
    const BiasDescription bias({position_table, time_table, thresholds, timestamps, query_times},
                               batch, q.size(0), silu);
    const AttentionInputs p =
        inputs(q, k, v, batch, silu, scale, score_scales, score_scale, bias, out, lse, threads);
    check_dout(dout, q, v);
    const int64_t slots = workspace.size(0);
    std::vector<int64_t> control(slots + control_words(p));
    const BackwardParams params{.in = p,
                                .dout = dout.data,
                                .dout_row = dout.stride(0),
                                .dout_head = dout.stride(1),
                                .dq = dq.data,
                                .dk = dk.data,
                                .dv = dv.data,
                                .order = batch.order().data(),
                                .workspace = workspace.as<float>(),
                                .slots = slots,
                                .slot_floats = workspace.size(1),
                                .control = control.data(),
                                .dbias = dbias ? dbias->as<double>() : nullptr};
    py::gil_scoped_release release;
    PYLUM_CPU_CALL_AMX(p.dtype, backward, params);
    if (dbias) {
        const int64_t entries = bias_entries(p.bias);
        for (int64_t i = 0; i < entries; ++i) {
            double sum = 0.0;
            for (int64_t copy = 0; copy < kBiasCopies; ++copy) {
                sum += params.dbias[copy * entries + i];
            }
            dtables->as<float>()[i] = static_cast<float>(sum);
        }
    }
}

#ifdef PYLUM_CUDA
static constexpr int64_t kRangeWords = sizeof(cuda::BiasRange) / sizeof(int64_t);

// dq, dk and dv have the shapes and the dtype of q, k and v, contiguous. With a bias: dtables
// [entries] float32, and dbias [kRangeWords + entries] int64, zero on entry, which they are summed
// in.
static void backward_on_device_py(
    const Tensor& dout, const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& offsets,
    const std::optional<Tensor>& num_context, const std::optional<Tensor>& num_targets,
    const std::optional<Tensor>& group_offsets, const std::optional<Tensor>& visible,
    int64_t window, int64_t min_full, bool silu, double scale,
    const std::optional<Tensor>& score_scales, double score_scale,
    const std::optional<Tensor>& position_table, const std::optional<Tensor>& time_table,
    const std::optional<Tensor>& thresholds, const std::optional<Tensor>& timestamps,
    const std::optional<Tensor>& query_times, const Tensor& out, const Tensor& lse,
    const Tensor& dq, const Tensor& dk, const Tensor& dv, const Tensor& delta,
    const std::optional<Tensor>& dbias, const std::optional<Tensor>& dtables,
    const Tensor& workspace, const std::optional<Tensor>& parts, const Execution& on) {
    check_heads(q, k, v);
    check_rows(q, k, "k");
    check_rows(q, v, "v");
    check_dout(dout, q, v);
    AttentionInputs in = describe_inputs(q, k, v, silu, scale, score_scales, score_scale);
    in.out = out.data;
    in.lse = silu ? nullptr : lse.as<float>();
    cuda::AttentionGradients p{};
    p.inputs = device_attention(
        in, q, k, offsets, std::nullopt, 0,
        {num_context, num_targets, group_offsets, visible, window, min_full},
        {position_table, time_table, thresholds, timestamps, query_times}, workspace, parts, on);
    p.dout = dout.data;
    p.dout_row = dout.stride(0);
    p.dout_head = dout.stride(1);
    p.dq = dq.data;
    p.dk = dk.data;
    p.dv = dv.data;
    p.delta = delta.as<float>();
    if (p.inputs.in.bias.given()) {
        const int64_t entries = bias_entries(p.inputs.in.bias);
        if (!dbias || !dtables || dbias->numel() < kRangeWords + entries ||
            dtables->numel() < entries) {
            throw py::value_error("the workspace of the bias is too small");
        }
        p.bias_range = dbias->as<cuda::BiasRange>();
        p.bias_sums = dbias->as<int64_t>() + kRangeWords;
        p.dtables = dtables->as<float>();
    }
    py::gil_scoped_release release;
    const cuda::DeviceGuard guard(q.device);
    cuda::launch_attention_backward(p, on.stream);
}
#endif

// int64 words and floats that forward() needs; none on a CPU.
static std::pair<int64_t, int64_t> workspace_py(const Tensor& q, const Tensor& v,
                                                const Tensor& offsets, bool targets) {
    if (!q.cuda || q.dims != 3 || v.dims != 3) {
        return {0, 0};
    }
    const auto need = device_workspace(q, v.size(2), offsets, targets ? q.size(0) : 0, 1);
    return {need.words, need.floats};
}

// [tasks under way at most, floats of one] that backward_py needs.
static std::pair<int64_t, int64_t> backward_workspace_py(const Tensor& q, const Tensor& k,
                                                         const Tensor& v,
                                                         const Tensor& offsets_tensor,
                                                         int threads) {
    check_heads(q, k, v);
    const int64_t* offsets = check_offsets(offsets_tensor, k.size(0));
    const int64_t batch = offsets_tensor.size(0) - 1;
    int64_t longest = 0;
    for (int64_t i = 0; i < batch; ++i) {
        longest = std::max(longest, offsets[i + 1] - offsets[i]);
    }
    const int64_t tasks = batch * k.size(1);
    return {std::clamp<int64_t>(tasks, 1, threads),
            longest * (padded(k.size(2)) + padded(v.size(2)))};
}

void register_op(py::module_& m) {
    m.def("attention_workspace", &workspace_py);
    m.def("attention_forward", &forward_py);
    m.def("attention_backward", &backward_py);
    m.def("attention_backward_workspace", &backward_workspace_py);
#ifdef PYLUM_CUDA
    m.def("attention_backward_on_device", &backward_on_device_py);
    m.def("attention_bias_words", [](int64_t entries) { return kRangeWords + entries; });
#endif
    m.attr("bias_copies") = kBiasCopies;
}

}  // namespace pylum::attention
