#include "common/attention_checks.h"
#include "common/attention_kernel.h"
#include "common/page_checks.h"
#include "query_layer/query_layer.h"

namespace pylum::query_layer {

static void check_weight(const Tensor& w, const char* name, const Tensor& x,
                         std::initializer_list<int64_t> shape) {
    expect_cpu(w, name);
    if (w.dtype != x.dtype) {
        fail_type(name, std::string(dtype_name(x.dtype)) + " like x", w);
    }
    std::string wanted;
    for (const int64_t size : shape) {
        wanted += (wanted.empty() ? "[" : ", ") + std::to_string(size);
    }
    expect(w.is_shape(shape) && w.contiguous(), name, wanted + "], contiguous", w);
}

static const int64_t* check_positions(const Tensor& positions, const Tensor& cos, const Tensor& sin,
                                      int64_t rows, int64_t head_dim) {
    for (const auto& [table, name] : {std::pair{&cos, "cos"}, std::pair{&sin, "sin"}}) {
        expect_cpu(*table, name);
        expect_dtype(*table, name, DType::kFloat32);
        expect(table->is_shape({cos.size(0), head_dim / 2}) && table->contiguous(), name,
               "[angles, head_dim / 2 = " + std::to_string(head_dim / 2) + "], contiguous", *table);
    }
    const int64_t* position = integers(positions, "positions", "rows", rows);
    for (int64_t i = 0; i < rows; ++i) {
        if (position[i] < 0 || position[i] >= cos.size(0)) {
            fail_number("positions[" + std::to_string(i) + "]",
                        "in [0, " + std::to_string(cos.size(0)) + " angles)", position[i]);
        }
    }
    return position;
}

// Consecutive heads of the fused projection.
static Tensor heads_of(const Tensor& fused, int64_t first, int64_t count) {
    Tensor heads = fused;
    const int64_t bytes = fused.dtype == DType::kFloat32 ? 4 : 2;
    heads.data = static_cast<char*>(fused.data) + first * fused.size(2) * bytes;
    heads.sizes[1] = count;
    return heads;
}

static void forward_py(const Tensor& x, const Tensor& offsets, const Tensor& positions,
                       const Tensor& cos, const Tensor& sin, const Tensor& attention_norm,
                       const Tensor& qkv, const Tensor& out, const Tensor& ffn_norm,
                       const Tensor& gate_up, const Tensor& down, const Tensor& k_pages,
                       const Tensor& v_pages, const Tensor& table, const Tensor& lengths,
                       const std::optional<Tensor>& num_context,
                       const std::optional<Tensor>& num_targets,
                       const std::optional<Tensor>& group_offsets,
                       const std::optional<Tensor>& visible, int64_t window, int64_t min_full,
                       int64_t heads, double eps, const Tensor& floats, const Tensor& h,
                       const Tensor& fused, const Tensor& attended, const Tensor& y, int threads) {
    expect_cpu(x, "x");
    expect_floating(x, "x");
    expect(x.dims == 2 && x.contiguous(), "x", "[targets, width], contiguous", x);
    const int64_t rows = x.size(0), width = x.size(1), kv_heads = k_pages.size(1);
    const int64_t head_dim = fused.size(2), ffn = down.size(1);
    check_weight(attention_norm, "attention_norm", x, {width});
    check_weight(qkv, "qkv", x, {(heads + 2 * kv_heads) * head_dim, width});
    check_weight(out, "out", x, {width, heads * head_dim});
    check_weight(ffn_norm, "ffn_norm", x, {width});
    check_weight(gate_up, "gate_up", x, {2 * ffn, width});
    check_weight(down, "down", x, {width, ffn});
    const Tensor q = heads_of(fused, 0, heads), k = heads_of(fused, heads, kv_heads);
    const Tensor v = heads_of(fused, heads + kv_heads, kv_heads);
    check_heads(q, k, v);
    check_offsets(offsets, rows);
    const int64_t* history = check_prefix(k_pages, v_pages, table, lengths, k, v, offsets);
    const BatchDescription batch(
        offsets, rows, history,
        {num_context, num_targets, group_offsets, visible, window, min_full});
    if (batch.num_targets() != rows) {
        throw py::value_error(
            "num_targets must count every row: the layer is for targets only, got " +
            std::to_string(batch.num_targets()) + " of " + std::to_string(rows));
    }
    AttentionInputs a =
        describe_inputs(q, k, v, false, 1.0 / std::sqrt(double(head_dim)), std::nullopt, 0.0);
    a.k_pages = k_pages.data;
    a.v_pages = v_pages.data;
    a.table = table.as<int64_t>();
    a.table_row = table.stride(0);
    describe_work(a, batch, threads);
    a.out = attended.data;
    const Params p{.dtype = x.dtype,
                   .x = x.data,
                   .positions = check_positions(positions, cos, sin, rows, head_dim),
                   .cos = cos.as<float>(),
                   .sin = sin.as<float>(),
                   .attention_norm = attention_norm.data,
                   .qkv = qkv.data,
                   .out = out.data,
                   .ffn_norm = ffn_norm.data,
                   .gate_up = gate_up.data,
                   .down = down.data,
                   .floats = floats.as<float>(),
                   .h = h.data,
                   .fused = fused.data,
                   .attended = attended.data,
                   .y = y.data,
                   .rows = rows,
                   .width = width,
                   .heads = heads,
                   .kv_heads = kv_heads,
                   .head_dim = head_dim,
                   .ffn = ffn,
                   .eps = static_cast<float>(eps),
                   .threads = threads};
    py::gil_scoped_release release;
    PYLUM_CPU_CALL_BF16(p.dtype, project, p);
    run_attention(a);
    PYLUM_CPU_CALL_BF16(p.dtype, complete, p);
}

void register_op(py::module_& m) { m.def("query_layer_forward", &forward_py); }

}  // namespace pylum::query_layer
