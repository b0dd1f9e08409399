#include "common/binding.h"

#include <cmath>

#include "sampled_softmax/cuda/space.h"
#include "sampled_softmax/pairs.h"
#include "sampled_softmax/sampled_softmax.h"

namespace pylum::sampled_softmax {

static void check_rows(const Tensor& rows, const char* name, int64_t num_items) {
    const int64_t* r = rows.as<int64_t>();
    for (int64_t i = 0; i < rows.numel(); ++i) {
        if (r[i] < 0 || r[i] >= num_items) {
            throw py::value_error(std::string(name) + " must be rows of items in [0, " +
                                  std::to_string(num_items) + "), got " + std::to_string(r[i]));
        }
    }
}

static void check_vector(const Tensor& t, const char* name, DType dtype, const char* of,
                         int64_t size, const Tensor& first, const char* first_name) {
    expect_like(t, name, first, first_name);
    expect_dtype(t, name, dtype);
    expect(t.is_shape({size}) && t.contiguous(), name,
           std::string("[") + of + " = " + std::to_string(size) + "] " + dtype_name(dtype) +
               ", contiguous",
           t);
}

static Params params_of(const Tensor& queries, const Tensor& items, const Tensor& targets,
                        const std::optional<Tensor>& negatives,
                        const std::optional<Tensor>& item_ids, const std::optional<Tensor>& log_q,
                        double temperature, const std::optional<Tensor>& scales,
                        const Execution& on) {
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
    const int64_t num_queries = queries.size(0), num_items = items.size(0);
    if (queries.cuda) {
        expect(queries.size(1) <= kMostCudaDim, "queries",
               "[queries, dim at most " + std::to_string(kMostCudaDim) + "] on cuda", queries);
    }
    check_vector(targets, "targets", DType::kInt64, "queries", num_queries, queries, "queries");
    if (negatives) {
        expect_like(*negatives, "negatives", queries, "queries");
        expect_dtype(*negatives, "negatives", DType::kInt64);
        expect(
            (negatives->dims == 1 || (negatives->dims == 2 && negatives->size(0) == num_queries)) &&
                negatives->contiguous(),
            "negatives",
            "[negatives] or [queries = " + std::to_string(num_queries) +
                ", negatives] int64, contiguous",
            *negatives);
    }
    if (item_ids) {
        check_vector(*item_ids, "item_ids", DType::kInt64, "items", num_items, queries, "queries");
    }
    if (log_q) {
        check_vector(*log_q, "log_q", DType::kFloat32, "items", num_items, queries, "queries");
    }
    if (scales) {
        check_vector(*scales, "scales", DType::kFloat32, "queries", num_queries, queries,
                     "queries");
    }
    // An empty tensor has no memory, yet no negatives differ from all items.
    static const int64_t none = 0;
    const int64_t* negative_rows = nullptr;
    if (negatives) {
        negative_rows = negatives->data ? negatives->as<int64_t>() : &none;
    }
    return {.queries = queries.data,
            .items = items.data,
            .dtype = queries.dtype,
            .num_queries = num_queries,
            .num_items = num_items,
            .dim = queries.size(1),
            .queries_stride = queries.stride(0),
            .items_stride = items.stride(0),
            .targets = targets.as<int64_t>(),
            .negatives = negative_rows,
            .num_negatives = negatives ? negatives->size(-1) : 0,
            .per_query = negatives && negatives->dims == 2,
            .item_ids = item_ids ? item_ids->as<int64_t>() : nullptr,
            .log_q = log_q ? log_q->as<float>() : nullptr,
            .inverse_temperature = static_cast<float>(1.0 / temperature),
            .scales = scales ? scales->as<float>() : nullptr,
            .losses = nullptr,
            .d_queries = nullptr,
            .d_items = nullptr,
            .workspace = nullptr,
            .threads = on.threads,
            .errors = on.errors};
}

// Floats of workspace that forward_py needs.
static int64_t workspace_py(const Tensor& queries, const Tensor& items, const Tensor& targets,
                            const std::optional<Tensor>& negatives,
                            const std::optional<Tensor>& item_ids,
                            const std::optional<Tensor>& log_q, double temperature,
                            const std::optional<Tensor>& scales, bool d_queries, bool d_items,
                            const Execution& on) {
    Params p =
        params_of(queries, items, targets, negatives, item_ids, log_q, temperature, scales, on);
    static char wanted;
    p.d_queries = d_queries ? &wanted : nullptr;
    p.d_items = d_items ? &wanted : nullptr;
    if (queries.cuda) {
        return Space(p, nullptr).floats;
    }
    return host_workspace(p);
}

static void forward_py(const Tensor& queries, const Tensor& items, const Tensor& targets,
                       const std::optional<Tensor>& negatives,
                       const std::optional<Tensor>& item_ids, const std::optional<Tensor>& log_q,
                       double temperature, const std::optional<Tensor>& scales,
                       const Tensor& losses, const std::optional<Tensor>& d_queries,
                       const std::optional<Tensor>& d_items, const Tensor& workspace,
                       const Execution& on) {
    Params p =
        params_of(queries, items, targets, negatives, item_ids, log_q, temperature, scales, on);
    if (!queries.cuda) {
        check_rows(targets, "targets", p.num_items);
        if (negatives) {
            check_rows(*negatives, "negatives", p.num_items);
        }
    }
    p.losses = losses.as<float>();
    p.d_queries = d_queries ? d_queries->data : nullptr;
    p.d_items = d_items ? d_items->data : nullptr;
    p.workspace = workspace.as<float>();
    py::gil_scoped_release release;
    if (p.per_query) {
        PYLUM_CALL(queries, on, forward_per_query, p);
    } else {
        PYLUM_CALL_OR(queries, on, forward_shared, PYLUM_CPU_CALL_AMX(p.dtype, forward_shared, p),
                      p);
    }
}

static void scale_on_host(const Scales& s) {
    double total = static_cast<double>(s.count);
    if (s.weights) {
        total = 0;
        for (int64_t n = 0; n < s.count; ++n) {
            if (!(s.weights[n] >= 0) || std::isinf(s.weights[n])) {
                throw py::value_error("weights must be finite and at least 0, got " +
                                      std::to_string(s.weights[n]));
            }
            total += s.weights[n];
        }
    }
    const double factor = !s.mean ? 1 : total > 0 ? 1 / total : 0;
    for (int64_t n = 0; n < s.count; ++n) {
        s.scales[n] = static_cast<float>((s.weights ? s.weights[n] : 1) * factor);
    }
}

static void scales_py(const std::optional<Tensor>& weights, bool mean, const Tensor& scales,
                      [[maybe_unused]] const Execution& on) {
    const int64_t count = scales.size(0);
    if (weights) {
        check_vector(*weights, "weights", DType::kFloat32, "queries", count, scales, "queries");
    }
    const Scales s{.weights = weights ? weights->as<float>() : nullptr,
                   .scales = scales.as<float>(),
                   .count = count,
                   .mean = mean,
                   .errors = on.errors};
    PYLUM_CALL_OR(scales, on, scales, scale_on_host(s), s);
}

static void reduce_on_host(const Reduction& r) {
    double total = 0;
    for (int64_t n = 0; n < r.count; ++n) {
        const double scaled = r.scales[n] == 0 ? 0 : static_cast<double>(r.scales[n]) * r.losses[n];
        total += scaled;
        if (!r.sums) {
            r.loss[n] = static_cast<float>(scaled);
        }
    }
    if (r.sums) {
        *r.loss = static_cast<float>(total);
    }
}

static void reduce_py(const Tensor& losses, const Tensor& scales, const Tensor& loss,
                      [[maybe_unused]] const Execution& on) {
    const Reduction r{.losses = losses.as<float>(),
                      .scales = scales.as<float>(),
                      .loss = loss.as<float>(),
                      .count = losses.size(0),
                      .sums = loss.dims == 0};
    PYLUM_CALL_OR(losses, on, reduce, reduce_on_host(r), r);
}

void register_op(py::module_& m) {
    m.def("sampled_softmax_workspace", &workspace_py);
    m.def("sampled_softmax_scales", &scales_py);
    m.def("sampled_softmax_reduce", &reduce_py);
    m.def("sampled_softmax_forward", &forward_py);
}

}  // namespace pylum::sampled_softmax
