#include "common/binding.h"

#include <algorithm>
#include <functional>

#include "common/parallel.h"
#include "topk/cuda/split.h"
#include "topk/topk.h"

namespace pylum::topk {

static void check_lists(const std::optional<Tensor>& rows, const std::optional<Tensor>& offsets,
                        const char* name, const Tensor& queries) {
    if (!rows) {
        return;
    }
    const std::string offsets_name = std::string(name) + " offsets";
    expect_like(*rows, name, queries, "queries");
    expect_dtype(*rows, name, DType::kInt64);
    expect(rows->dims == 1 && rows->contiguous(), name, "[total] int64, contiguous", *rows);
    if (!offsets) {
        throw py::value_error(offsets_name + " are missing");
    }
    expect_like(*offsets, offsets_name.c_str(), queries, "queries");
    expect_dtype(*offsets, offsets_name.c_str(), DType::kInt64);
    expect(offsets->is_shape({queries.size(0) + 1}) && offsets->contiguous(), offsets_name.c_str(),
           "[queries + 1 = " + std::to_string(queries.size(0) + 1) + "] int64, contiguous",
           *offsets);
}

static void check_rows(const std::optional<Tensor>& rows, const std::optional<Tensor>& offsets,
                       const char* name, int64_t num_queries, int64_t num_items) {
    if (!rows) {
        return;
    }
    const std::string offsets_name = std::string(name) + " offsets";
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

// Lists of rows as the kernels want them: strictly ascending. A list that is not is copied into
// space, sorted, and stripped of repetitions.
static void prepare(const Tensor& rows, const Tensor& offsets, int64_t* space, Rows* lists,
                    int64_t num_queries, int threads) {
    const int64_t* r = rows.as<int64_t>();
    const int64_t* o = offsets.as<int64_t>();
    parallel_for(num_queries, rows.numel() > 16384 ? threads : 1, [&](int64_t q) {
        lists[q] = {r + o[q], o[q + 1] - o[q]};
        const int64_t* end = r + o[q + 1];
        if (std::adjacent_find(r + o[q], end, std::greater_equal<int64_t>()) == end) {
            return;
        }
        int64_t* copy = std::copy(r + o[q], end, space + o[q]);
        std::sort(space + o[q], copy);
        lists[q] = {space + o[q], std::unique(space + o[q], copy) - (space + o[q])};
    });
}

static int64_t padded(int64_t bytes) { return (bytes + 63) / 64 * 64; }

static int64_t lists_bytes(const std::optional<Tensor>& rows, int64_t num_queries) {
    return rows ? padded(rows->numel() * sizeof(int64_t)) + padded(num_queries * sizeof(Rows)) : 0;
}

static bool has_byte_products() {
#ifdef PYLUM_X86
    return isa() >= Isa::kAvx512 && __builtin_cpu_supports("avx512vnni");
#else
    return false;
#endif
}

static Params params_of(const Tensor& queries, const Tensor& items, int64_t k, bool candidates,
                        int threads) {
    expect_device(queries, "queries");
    expect_like(items, "items", queries, "queries");
    expect_floating(queries, "queries");
    expect(queries.dims == 2 && queries.last_contiguous(), "queries",
           "[queries, dim], last dimension contiguous", queries);
    if (items.dtype != queries.dtype) {
        fail_type("items", std::string(dtype_name(queries.dtype)) + " like queries", items);
    }
    expect(items.dims == 2 && items.size(1) == queries.size(1) && items.last_contiguous(), "items",
           "[items, dim = " + std::to_string(queries.size(1)) + "], last dimension contiguous",
           items);
    if (items.size(0) > int64_t{1} << 32) {
        fail_value("items", "at most 2^32 rows", items);
    }
    static const Rows some{};
    return {.queries = queries.data,
            .items = items.data,
            .dtype = queries.dtype,
            .num_queries = queries.size(0),
            .num_items = items.size(0),
            .dim = queries.size(1),
            .k = k,
            .queries_stride = queries.stride(0),
            .items_stride = items.stride(0),
            .exclude = nullptr,
            .candidates = candidates ? &some : nullptr,
            .scores = nullptr,
            .indices = nullptr,
            .workspace = nullptr,
            .threads = threads,
            .byte_products = has_byte_products()};
}

#ifdef PYLUM_CUDA
static DeviceParams device_params(const Params& p, const std::optional<Tensor>& exclude,
                                  const std::optional<Tensor>& exclude_offsets,
                                  const std::optional<Tensor>& candidates,
                                  const std::optional<Tensor>& candidates_offsets,
                                  const Execution& on) {
    if (p.k > kMostCudaK) {
        throw py::value_error("k must be at most " + std::to_string(kMostCudaK) + " on cuda, got " +
                              std::to_string(p.k));
    }
    // An empty tensor has no memory, yet no candidates differ from all items.
    static const int64_t none = 0;
    const auto lists = [&](const std::optional<Tensor>& rows,
                           const std::optional<Tensor>& offsets) -> Lists {
        if (!rows) {
            return {};
        }
        return {rows->data ? rows->as<int64_t>() : &none,
                offsets ? offsets->as<int64_t>() : nullptr, rows->numel()};
    };
    return {.params = p,
            .exclude = lists(exclude, exclude_offsets),
            .candidates = lists(candidates, candidates_offsets),
            .parts = nullptr,
            .errors = on.errors};
}
#endif

// Bytes of workspace that forward_py needs.
static int64_t workspace_py(const Tensor& queries, const Tensor& items, int64_t k,
                            const std::optional<Tensor>& exclude,
                            const std::optional<Tensor>& candidates, const Execution& on) {
    const Params p = params_of(queries, items, k, candidates.has_value(), on.threads);
#ifdef PYLUM_CUDA
    if (queries.cuda) {
        return parts_needed(device_params(p, exclude, {}, candidates, {}, on)) *
               sizeof(*DeviceParams::parts);
    }
#endif
    return Layout(p).total + lists_bytes(exclude, p.num_queries) +
           lists_bytes(candidates, p.num_queries) + 64;
}

static void forward_py(const Tensor& queries, const Tensor& items,
                       const std::optional<Tensor>& exclude,
                       const std::optional<Tensor>& exclude_offsets,
                       const std::optional<Tensor>& candidates,
                       const std::optional<Tensor>& candidates_offsets, const Tensor& scores,
                       const Tensor& indices, const Tensor& workspace, const Execution& on) {
    Params p = params_of(queries, items, scores.size(1), candidates.has_value(), on.threads);
    check_lists(exclude, exclude_offsets, "exclude", queries);
    check_lists(candidates, candidates_offsets, "candidates", queries);
    p.scores = scores.as<float>();
    p.indices = indices.as<int64_t>();
#ifdef PYLUM_CUDA
    if (queries.cuda) {
        DeviceParams d =
            device_params(p, exclude, exclude_offsets, candidates, candidates_offsets, on);
        d.parts = workspace.as<unsigned long long>();
        py::gil_scoped_release release;
        const cuda::DeviceGuard guard(queries.device);
        launch_forward(d, on.stream);
        return;
    }
#endif
    check_rows(exclude, exclude_offsets, "exclude", p.num_queries, p.num_items);
    check_rows(candidates, candidates_offsets, "candidates", p.num_queries, p.num_items);
    const auto address = reinterpret_cast<uintptr_t>(workspace.data);
    p.workspace = workspace.as<char>() + (64 - address % 64);
    char* space = p.workspace + Layout(p).total;
    py::gil_scoped_release release;
    const auto lists = [&](const Tensor& rows, const Tensor& offsets) {
        auto* copies = reinterpret_cast<int64_t*>(space);
        auto* begin = reinterpret_cast<Rows*>(space + padded(rows.numel() * sizeof(int64_t)));
        prepare(rows, offsets, copies, begin, p.num_queries, on.threads);
        space += lists_bytes(rows, p.num_queries);
        return begin;
    };
    if (exclude) {
        p.exclude = lists(*exclude, *exclude_offsets);
    }
    if (candidates) {
        p.candidates = lists(*candidates, *candidates_offsets);
    }
    PYLUM_CPU_CALL_AMX(p.dtype, forward, p);
}

void register_op(py::module_& m) {
    m.def("topk_workspace", &workspace_py);
    m.def("topk_forward", &forward_py);
}

}  // namespace pylum::topk
