#include "append_pages/append_pages.h"
#include "common/page_checks.h"

namespace pylum::append_pages {

// Below this many elements a team of threads costs more than it saves.
static constexpr int64_t kSerialElements = 1 << 17;

static void check_angles(const Tensor& cos, const Tensor& sin, const Tensor& k) {
    const int64_t head_dim = k.size(2);
    for (const auto& [x, name] : {std::pair{&cos, "cos"}, std::pair{&sin, "sin"}}) {
        expect_like(*x, name, k, "k");
        expect_dtype(*x, name, DType::kFloat32);
        expect(
            head_dim % 2 == 0 && x->is_shape({cos.size(0), head_dim / 2}) && x->last_contiguous(),
            name,
            "[angles, head_dim / 2] float32 of an even head_dim, here " + std::to_string(head_dim),
            *x);
    }
}

// As integers(), also on CUDA.
static const int64_t* words(const Tensor& t, const char* name, const std::string& dims,
                            int64_t size, const Tensor& k) {
    if (!k.cuda) {
        return integers(t, name, dims, size);
    }
    expect_like(t, name, k, "k");
    expect_dtype(t, name, DType::kInt64);
    expect(t.is_shape({size}) && t.contiguous(), name,
           "[" + dims + " = " + std::to_string(size) + "] int64, contiguous", t);
    return t.as<int64_t>();
}

// Every token has a page in the pool and, where keys turn, an angle.
static void check_values(const Params& p, const Tensor& table) {
    int64_t last_angle = -1;
    for (int64_t b = 0; b < p.batch; ++b) {
        const int64_t count = p.offsets[b + 1] - p.offsets[b], end = p.starts[b] + count;
        if (p.starts[b] < 0) {
            fail_number("starts[" + std::to_string(b) + "]", "at least 0", p.starts[b]);
        }
        check_pages(table, b, p.starts[b], end, p.num_pages);
        last_angle = count > 0 && end - 1 > last_angle ? end - 1 : last_angle;
    }
    for (int64_t i = 0; p.positions && i < p.rows; ++i) {
        if (p.positions[i] < 0 || p.positions[i] >= p.angles) {
            fail_number("positions[" + std::to_string(i) + "]",
                        "in [0, " + std::to_string(p.angles) + " angles)", p.positions[i]);
        }
    }
    if (p.cos && !p.positions && last_angle >= p.angles) {
        fail_number("cos", "of at least " + std::to_string(last_angle + 1) + " angles", p.angles);
    }
}

static void forward_py(const Tensor& k_pages, const Tensor& v_pages, const Tensor& table,
                       const Tensor& k, const Tensor& v, const Tensor& offsets,
                       const Tensor& starts, const std::optional<Tensor>& positions,
                       const std::optional<Tensor>& cos, const std::optional<Tensor>& sin,
                       const Execution& on) {
    expect_device(k, "k");
    expect_like(v, "v", k, "k");
    for (const auto& [x, name] : {std::pair{&k, "k"}, std::pair{&v, "v"}}) {
        expect_floating(*x, name);
        expect(x->dims == 3 && x->last_contiguous(), name,
               "[total, kv_heads, dim], last dimension contiguous", *x);
    }
    expect(
        v.size(0) == k.size(0) && v.size(1) == k.size(1), "v",
        "[" + std::to_string(k.size(0)) + ", " + std::to_string(k.size(1)) + ", value_dim] like k",
        v);
    if (v.dtype != k.dtype) {
        fail_type("v", std::string(dtype_name(k.dtype)) + " like k", v);
    }
    check_pool(k_pages, "prefix.k", k, k.size(2));
    check_pool(v_pages, "prefix.v", k, v.size(2));
    expect(v_pages.size(0) == k_pages.size(0), "prefix.v",
           "of " + std::to_string(k_pages.size(0)) + " pages like prefix.k", v_pages);
    if (k.cuda) {
        expect(offsets.dims == 1 && offsets.size(0) >= 1, "offsets", "[batch + 1] int64", offsets);
    } else {
        check_offsets(offsets, k.size(0));
    }
    const int64_t batch = offsets.size(0) - 1;
    check_table(table, k, batch);
    if (cos.has_value() != sin.has_value()) {
        throw py::value_error("cos and sin must be given together");
    }
    if (cos) {
        check_angles(*cos, *sin, k);
    } else if (positions) {
        throw py::value_error("positions choose rows of cos and sin: they must be given too");
    }
    const Params p{
        .dtype = k.dtype,
        .k = k.data,
        .v = v.data,
        .k_row = k.stride(0),
        .k_head = k.stride(1),
        .v_row = v.stride(0),
        .v_head = v.stride(1),
        .kv_heads = k.size(1),
        .head_dim = k.size(2),
        .value_dim = v.size(2),
        .offsets = words(offsets, "offsets", "batch + 1", batch + 1, k),
        .starts = words(starts, "starts", "batch", batch, k),
        .table = table.as<int64_t>(),
        .positions = positions ? words(*positions, "positions", "total", k.size(0), k) : nullptr,
        .cos = cos ? cos->as<float>() : nullptr,
        .sin = sin ? sin->as<float>() : nullptr,
        .rows = k.size(0),
        .batch = batch,
        .table_row = table.stride(0),
        .cos_row = cos ? cos->stride(0) : 0,
        .sin_row = sin ? sin->stride(0) : 0,
        .num_pages = k_pages.size(0),
        .table_width = table.size(1),
        .angles = cos ? cos->size(0) : 0,
        .k_pages = k_pages.data,
        .v_pages = v_pages.data,
        .threads = k.numel() + v.numel() < kSerialElements ? 1 : on.threads,
        .errors = on.errors};
    if (!k.cuda) {
        check_values(p, table);
    }
    py::gil_scoped_release release;
    PYLUM_CALL(k, on, forward, p);
}

void register_op(py::module_& m) { m.def("append_pages_forward", &forward_py); }

}  // namespace pylum::append_pages
