#include "common/attention_checks.h"
#include "common/attention_kernel.h"
#include "common/device_attention.h"
#include "common/page_checks.h"

namespace pylum::prefix_attention {

static void forward_py(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& offsets,
                       const Tensor& k_pages, const Tensor& v_pages, const Tensor& table,
                       const Tensor& lengths, const std::optional<Tensor>& num_context,
                       const std::optional<Tensor>& num_targets,
                       const std::optional<Tensor>& group_offsets,
                       const std::optional<Tensor>& visible, int64_t window, int64_t min_full,
                       bool silu, double scale, const std::optional<Tensor>& score_scales,
                       double score_scale, const std::optional<Tensor>& position_table,
                       const std::optional<Tensor>& time_table,
                       const std::optional<Tensor>& thresholds,
                       const std::optional<Tensor>& timestamps,
                       const std::optional<Tensor>& query_times, const Tensor& out,
                       [[maybe_unused]] const std::optional<Tensor>& workspace,
                       [[maybe_unused]] const std::optional<Tensor>& parts, const Execution& on) {
    check_heads(q, k, v);
    const MaskTensors mask{num_context, num_targets, group_offsets, visible, window, min_full};
    const BiasTensors tables{position_table, time_table, thresholds, timestamps, query_times};
    AttentionInputs p = describe_inputs(q, k, v, silu, scale, score_scales, score_scale);
    p.k_pages = k_pages.data;
    p.v_pages = v_pages.data;
    p.table = table.as<int64_t>();
    p.table_row = table.dims == 2 ? table.stride(0) : 0;
    p.out = out.data;
#ifdef PYLUM_CUDA
    if (q.cuda) {
        expect(v.size(0) == k.size(0), "v", "of " + std::to_string(k.size(0)) + " rows like k", v);
        check_pools(k_pages, v_pages, k, v);
        check_table(table, q, offsets.numel() - 1);
        cuda::AttentionParams device = device_attention(p, q, k, offsets, lengths, table.size(1),
                                                        mask, tables, workspace, parts, on);
        device.num_pages = k_pages.size(0);
        py::gil_scoped_release release;
        const cuda::DeviceGuard guard(q.device);
        cuda::launch_attention_forward(device, on.stream);
        return;
    }
#endif
    check_offsets(offsets, q.size(0));
    const int64_t* tokens = check_prefix(k_pages, v_pages, table, lengths, k, v, offsets);
    const BatchDescription batch(offsets, q.size(0), tokens, mask);
    for (const auto& [x, name] : {std::pair{&k, "k"}, std::pair{&v, "v"}}) {
        expect(x->size(0) == batch.num_targets(), name,
               "of the batch's " + std::to_string(batch.num_targets()) +
                   " targets only: history is read from the pages",
               *x);
    }
    const BiasDescription bias(tables, batch, q.size(0), silu);
    p.bias = bias.bias();
    describe_work(p, batch, on.threads);
    py::gil_scoped_release release;
    run_attention(p);
}

// int64 words and floats that forward() needs; none on a CPU.
static std::pair<int64_t, int64_t> workspace_py(const Tensor& q, const Tensor& v,
                                                const Tensor& offsets, const Tensor& table,
                                                bool targets) {
    if (!q.cuda || q.dims != 3 || v.dims != 3 || table.dims != 2) {
        return {0, 0};
    }
    const int64_t rows = targets ? v.size(0) : 0;
    const int64_t chunks = device_chunks(q, v.size(2), rows, table.size(1));
    const auto need = device_workspace(q, v.size(2), offsets, rows, chunks);
    return {need.words, need.floats};
}

void register_op(py::module_& m) {
    m.def("prefix_attention_workspace", &workspace_py);
    m.def("prefix_attention_forward", &forward_py);
}

}  // namespace pylum::prefix_attention
