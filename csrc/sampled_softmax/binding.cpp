#include "common/binding.h"

#include <cmath>

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
                         int64_t size) {
    expect_cpu(t, name);
    expect_dtype(t, name, dtype);
    expect(t.is_shape({size}) && t.contiguous(), name,
           std::string("[") + of + " = " + std::to_string(size) + "] " + dtype_name(dtype) +
               ", contiguous",
           t);
}

static Params params_of(const Tensor& queries, const Tensor& items, const Tensor& targets,
                        const std::optional<Tensor>& negatives,
                        const std::optional<Tensor>& item_ids, const std::optional<Tensor>& log_q,
                        double temperature, const std::optional<Tensor>& scales, int threads) {
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
    const int64_t num_queries = queries.size(0), num_items = items.size(0);
    check_vector(targets, "targets", DType::kInt64, "queries", num_queries);
    if (negatives) {
        expect_cpu(*negatives, "negatives");
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
        check_vector(*item_ids, "item_ids", DType::kInt64, "items", num_items);
    }
    if (log_q) {
        check_vector(*log_q, "log_q", DType::kFloat32, "items", num_items);
    }
    if (scales) {
        check_vector(*scales, "scales", DType::kFloat32, "queries", num_queries);
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
            .threads = threads};
}

// Floats of workspace that forward_py needs.
static int64_t workspace_py(const Tensor& queries, const Tensor& items, const Tensor& targets,
                            const std::optional<Tensor>& negatives,
                            const std::optional<Tensor>& item_ids,
                            const std::optional<Tensor>& log_q, double temperature,
                            const std::optional<Tensor>& scales, bool d_queries, bool d_items,
                            int threads) {
    Params p = params_of(queries, items, targets, negatives, item_ids, log_q, temperature, scales,
                         threads);
    static char wanted;
    p.d_queries = d_queries ? &wanted : nullptr;
    p.d_items = d_items ? &wanted : nullptr;
    return isa() >= Isa::kAvx512Bf16 && PairLayout::suits(p) ? PairLayout(p).total
                                                             : Layout(p).total;
}

static void forward_py(const Tensor& queries, const Tensor& items, const Tensor& targets,
                       const std::optional<Tensor>& negatives,
                       const std::optional<Tensor>& item_ids, const std::optional<Tensor>& log_q,
                       double temperature, const std::optional<Tensor>& scales,
                       const Tensor& losses, const std::optional<Tensor>& d_queries,
                       const std::optional<Tensor>& d_items, const Tensor& workspace, int threads) {
    Params p = params_of(queries, items, targets, negatives, item_ids, log_q, temperature, scales,
                         threads);
    check_rows(targets, "targets", p.num_items);
    if (negatives) {
        check_rows(*negatives, "negatives", p.num_items);
    }
    p.losses = losses.as<float>();
    p.d_queries = d_queries ? d_queries->data : nullptr;
    p.d_items = d_items ? d_items->data : nullptr;
    p.workspace = workspace.as<float>();
    py::gil_scoped_release release;
    if (p.per_query) {
        PYLUM_CPU_CALL(forward_per_query, p);
    } else {
        PYLUM_CPU_CALL_AMX(p.dtype, forward_shared, p);
    }
}

// scales[n] = d loss / d losses[n] of the reduction.
static void scales_py(const std::optional<Tensor>& weights, bool mean, const Tensor& scales) {
    const int64_t count = scales.size(0);
    float* to = scales.as<float>();
    const float* from = nullptr;
    double total = static_cast<double>(count);
    if (weights) {
        check_vector(*weights, "weights", DType::kFloat32, "queries", count);
        from = weights->as<float>();
        total = 0;
        for (int64_t n = 0; n < count; ++n) {
            if (!(from[n] >= 0) || std::isinf(from[n])) {
                throw py::value_error("weights must be finite and at least 0, got " +
                                      std::to_string(from[n]));
            }
            total += from[n];
        }
    }
    const double factor = !mean ? 1 : total > 0 ? 1 / total : 0;
    for (int64_t n = 0; n < count; ++n) {
        to[n] = static_cast<float>((from ? from[n] : 1) * factor);
    }
}

// loss [] = sum of scales[n] * losses[n], in order; or loss [N] = scales[n] * losses[n].
static void reduce_py(const Tensor& losses, const Tensor& scales, const Tensor& loss) {
    const float* l = losses.as<float>();
    const float* s = scales.as<float>();
    double total = 0;
    for (int64_t n = 0; n < losses.size(0); ++n) {
        const double scaled = s[n] == 0 ? 0 : static_cast<double>(s[n]) * l[n];
        total += scaled;
        if (loss.dims == 1) {
            loss.as<float>()[n] = static_cast<float>(scaled);
        }
    }
    if (loss.dims == 0) {
        *loss.as<float>() = static_cast<float>(total);
    }
}

void register_op(py::module_& m) {
    m.def("sampled_softmax_workspace", &workspace_py);
    m.def("sampled_softmax_scales", &scales_py);
    m.def("sampled_softmax_reduce", &reduce_py);
    m.def("sampled_softmax_forward", &forward_py);
}

}  // namespace pylum::sampled_softmax
