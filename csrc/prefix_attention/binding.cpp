#include "common/attention_checks.h"
#include "common/page_checks.h"
#include "common/prefix_attention.h"

namespace pylum::prefix_attention {

void run(const AttentionInputs& p) { PYLUM_CPU_CALL_BF16(p.dtype, forward, p); }

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
                       const std::optional<Tensor>& query_times, const Tensor& out, int threads) {
    check_heads(q, k, v);
    check_offsets(offsets, q.size(0));
    const int64_t* tokens = check_prefix(k_pages, v_pages, table, lengths, k, v, offsets);
    const BatchDescription batch(
        offsets, q.size(0), tokens,
        {num_context, num_targets, group_offsets, visible, window, min_full});
    for (const auto& [x, name] : {std::pair{&k, "k"}, std::pair{&v, "v"}}) {
        expect(x->size(0) == batch.num_targets(), name,
               "of the batch's " + std::to_string(batch.num_targets()) +
                   " targets only: history is read from the pages",
               *x);
    }
    AttentionInputs p = describe_inputs(q, k, v, silu, scale, score_scales, score_scale);
    const BiasDescription bias({position_table, time_table, thresholds, timestamps, query_times},
                               batch, q.size(0), silu);
    p.bias = bias.bias();
    p.k_pages = k_pages.data;
    p.v_pages = v_pages.data;
    p.table = table.as<int64_t>();
    p.table_row = table.stride(0);
    describe_work(p, batch, threads);
    p.out = out.data;
    py::gil_scoped_release release;
    run(p);
}

void register_op(py::module_& m) { m.def("prefix_attention_forward", &forward_py); }

}  // namespace pylum::prefix_attention
