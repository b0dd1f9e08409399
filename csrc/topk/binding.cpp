#include "common/binding.h"

#include "topk/topk.h"

namespace pylum::topk {

static void check_rows(const std::optional<Tensor>& rows, const std::optional<Tensor>& offsets,
                       const char* name, int64_t num_queries, int64_t num_items) {
    if (!rows) {
        return;
    }
    const std::string offsets_name = std::string(name) + " offsets";
    expect_cpu(*rows, name);
    expect_dtype(*rows, name, DType::kInt64);
    expect(rows->dims == 1 && rows->contiguous(), name, "[total] int64, contiguous", *rows);
    if (!offsets) {
        throw py::value_error(offsets_name + " are missing");
    }
    expect_dtype(*offsets, offsets_name.c_str(), DType::kInt64);
    expect(offsets->is_shape({num_queries + 1}) && offsets->contiguous(), offsets_name.c_str(),
           "[queries + 1 = " + std::to_string(num_queries + 1) + "] int64, contiguous", *offsets);
    const int64_t* o = offsets->as<int64_t>();
    if (o[0] != 0 || o[num_queries] != rows->size(0)) {
        throw py::value_error(offsets_name + " must run from 0 to " +
                              std::to_string(rows->size(0)) + ", got " + std::to_string(o[0]) +
                              " to " + std::to_string(o[num_queries]));
    }
    for (int64_t q = 0; q < num_queries; ++q) {
        if (o[q] > o[q + 1]) {
            throw py::value_error(offsets_name + " must be non-decreasing, got " +
                                  std::to_string(o[q]) + " before " + std::to_string(o[q + 1]));
        }
    }
    const int64_t* r = rows->as<int64_t>();
    for (int64_t i = 0; i < rows->size(0); ++i) {
        if (r[i] < 0 || r[i] >= num_items) {
            throw py::value_error(std::string(name) + " must be item rows in [0, " +
                                  std::to_string(num_items) + "), got " + std::to_string(r[i]));
        }
    }
}

static void forward_py(const Tensor& queries, const Tensor& items,
                       const std::optional<Tensor>& exclude,
                       const std::optional<Tensor>& exclude_offsets,
                       const std::optional<Tensor>& candidates,
                       const std::optional<Tensor>& candidates_offsets, const Tensor& scores,
                       const Tensor& indices, int threads) {
    expect_cpu(queries, "queries");
    expect_cpu(items, "items");
    expect_floating(queries, "queries");
    expect(queries.dims == 2 && queries.last_contiguous(), "queries",
           "[queries, dim], last dimension contiguous", queries);
    if (items.dtype != queries.dtype) {
        fail_type("items", std::string(dtype_name(queries.dtype)) + " like queries", items);
    }
    expect(items.dims == 2 && items.size(1) == queries.size(1) && items.last_contiguous(), "items",
           "[items, dim = " + std::to_string(queries.size(1)) + "], last dimension contiguous",
           items);
    check_rows(exclude, exclude_offsets, "exclude", queries.size(0), items.size(0));
    check_rows(candidates, candidates_offsets, "candidates", queries.size(0), items.size(0));
    const Params p{.queries = queries.data,
                   .items = items.data,
                   .dtype = queries.dtype,
                   .num_queries = queries.size(0),
                   .num_items = items.size(0),
                   .dim = queries.size(1),
                   .k = scores.size(1),
                   .queries_stride = queries.stride(0),
                   .items_stride = items.stride(0),
                   .exclude = exclude ? exclude->as<int64_t>() : nullptr,
                   .exclude_offsets = exclude ? exclude_offsets->as<int64_t>() : nullptr,
                   .candidates = candidates ? candidates->as<int64_t>() : nullptr,
                   .candidates_offsets = candidates ? candidates_offsets->as<int64_t>() : nullptr,
                   .scores = scores.as<float>(),
                   .indices = indices.as<int64_t>(),
                   .threads = threads};
    py::gil_scoped_release release;
    PYLUM_CPU_CALL(forward, p);
}

void register_op(py::module_& m) { m.def("topk_forward", &forward_py); }

}  // namespace pylum::topk
