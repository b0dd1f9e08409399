#include "common/binding.h"

#include <cmath>
#include <vector>

#include "common/cuda/sort.h"
#include "row_wise/row_wise.h"

namespace pylum::row_wise {

// The sum of a row stands on the stack of the thread that owns it.
static constexpr int64_t kMaxDim = 16'384;

static void check_offsets(const Tensor& offsets, const std::string& name, int64_t bags,
                          int64_t lookups, const Tensor& table) {
    expect_like(offsets, name.c_str(), table, "table");
    expect_dtype(offsets, name.c_str(), DType::kInt64);
    expect(offsets.is_shape({bags + 1}) && offsets.contiguous(), name.c_str(),
           "[bags + 1 = " + std::to_string(bags + 1) + "] int64, contiguous", offsets);
    if (offsets.cuda) {
        return;
    }
    const int64_t* o = offsets.as<int64_t>();
    if (o[0] != 0 || o[bags] != lookups) {
        throw py::value_error(name + " must run from 0 to " + std::to_string(lookups) + ", got " +
                              std::to_string(o[0]) + " to " + std::to_string(o[bags]));
    }
    for (int64_t b = 0; b < bags; ++b) {
        if (o[b] > o[b + 1]) {
            throw py::value_error(name + " must be non-decreasing, got " + std::to_string(o[b]) +
                                  " before " + std::to_string(o[b + 1]));
        }
    }
}

static std::vector<Use> checked_uses(const std::vector<Tensor>& indices,
                                     const std::vector<Tensor>& grads,
                                     const std::vector<std::optional<Tensor>>& offsets,
                                     const std::vector<bool>& means, const Tensor& table) {
    const int64_t dim = table.size(1);
    std::vector<Use> uses;
    for (size_t u = 0; u < indices.size(); ++u) {
        const std::string use = "uses[" + std::to_string(u) + "]";
        const std::string index_name = use + " indices", grad_name = use + " grad";
        expect_like(indices[u], index_name.c_str(), table, "table");
        expect_dtype(indices[u], index_name.c_str(), DType::kInt64);
        expect(indices[u].dims == 1, index_name.c_str(), "[lookups] int64", indices[u]);
        const int64_t lookups = indices[u].size(0);
        expect_like(grads[u], grad_name.c_str(), table, "table");
        expect_floating(grads[u], grad_name.c_str());
        const bool bags = offsets[u].has_value();
        expect(grads[u].dims == 2 && grads[u].size(1) == dim && grads[u].last_contiguous() &&
                   (bags || grads[u].size(0) == lookups),
               grad_name.c_str(),
               "[" + (bags ? std::string("bags") : "lookups = " + std::to_string(lookups)) +
                   ", dim = " + std::to_string(dim) + "], last dimension contiguous",
               grads[u]);
        if (bags) {
            check_offsets(*offsets[u], use + " offsets", grads[u].size(0), lookups, table);
        }
        uses.push_back({.indices = indices[u].as<int64_t>(),
                        .offsets = bags ? offsets[u]->as<int64_t>() : nullptr,
                        .grad = grads[u].data,
                        .grad_dtype = grads[u].dtype,
                        .mean = means[u],
                        .lookups = lookups,
                        .grad_rows = grads[u].size(0),
                        .indices_stride = indices[u].stride(0),
                        .grad_stride = grads[u].stride(0)});
    }
    return uses;
}

// Rows that are written must not share memory.
static void expect_rows(const Tensor& t, const char* name, const std::string& wanted) {
    expect(t.dims == 2 && t.last_contiguous() && (t.size(0) <= 1 || t.stride(0) >= t.size(1)), name,
           wanted + ", last dimension contiguous, rows apart", t);
    expect(t.size(1) <= kMaxDim, name, "at most " + std::to_string(kMaxDim) + " wide", t);
}

// Words and rows of partials.
static std::pair<int64_t, int64_t> workspace(const Tensor& table, int64_t lookups) {
    return table.cuda ? std::pair(cuda::sort_words(lookups), cuda_pieces_bound(lookups))
                      : std::pair(words_needed(lookups), pieces_bound(lookups));
}

static void run(Params& p, const std::vector<Use>& uses, const Tensor& table, const Tensor& words,
                const Tensor& partials, const Execution& on) {
    p.uses = uses.data();
    p.num_uses = static_cast<int64_t>(uses.size());
    p.table = table.data;
    p.dtype = table.dtype;
    p.rows = table.size(0);
    p.dim = table.size(1);
    p.table_stride = table.stride(0);
    int64_t lookups = 0;
    for (const Use& use : uses) {
        lookups += use.lookups;
    }
    if (table.cuda && (p.num_uses > kMostCudaUses || lookups > cuda::kMostSortKeys)) {
        throw py::value_error("uses must be at most " + std::to_string(kMostCudaUses) +
                              " with fewer than 2^32 lookups on cuda, got " +
                              std::to_string(p.num_uses) + " with " + std::to_string(lookups));
    }
    const auto [num_words, pieces] = workspace(table, lookups);
    expect(words.numel() >= num_words, "words", "large enough", words);
    expect(partials.numel() >= pieces * p.dim, "partials", "large enough", partials);
    p.words = words.as<uint64_t>();
    p.partials = partials.as<float>();
    p.threads = on.threads;
    p.errors = on.errors;
    bool good = true;
    p.good = &good;
    {
        py::gil_scoped_release release;
        PYLUM_CALL(table, on, forward, p);
    }
    for (size_t u = 0; !good && u < uses.size(); ++u) {
        for (int64_t i = 0; i < uses[u].lookups; ++i) {
            const int64_t row = uses[u].indices[i * uses[u].indices_stride];
            if (row < 0 || row >= p.rows) {
                throw py::value_error("uses[" + std::to_string(u) +
                                      "] indices must be rows of table in [0, " +
                                      std::to_string(p.rows) + "), got " + std::to_string(row) +
                                      " at " + std::to_string(i));
            }
        }
    }
}

using Tensors = std::vector<Tensor>;
using Optionals = std::vector<std::optional<Tensor>>;

static void sums_py(const Tensor& table, const Tensors& indices, const Tensors& grads,
                    const Optionals& offsets, const std::vector<bool>& means, const Tensor& words,
                    const Tensor& partials, const Execution& on) {
    expect_floating(table, "table");
    expect_device(table, "table");
    expect_rows(table, "table", "[rows, dim]");
    Params p{};
    p.rule = Rule::kSum;
    run(p, checked_uses(indices, grads, offsets, means, table), table, words, partials, on);
}

static void check_state(const Tensor& state, const char* name, const Tensor& table) {
    const int64_t rows = table.size(0);
    expect_like(state, name, table, "table");
    expect_dtype(state, name, DType::kFloat32);
    expect(state.is_shape({rows}) && state.contiguous(), name,
           "[rows = " + std::to_string(rows) + "] float32, contiguous", state);
}

static void adagrad_py(const Tensor& table, const Tensor& state, const Tensors& indices,
                       const Tensors& grads, const Optionals& offsets,
                       const std::vector<bool>& means, double lr, double eps, const Tensor& words,
                       const Tensor& partials, const Execution& on) {
    expect_floating(table, "table");
    expect_device(table, "table");
    expect_rows(table, "table", "[rows, dim]");
    check_state(state, "state", table);
    Params p{};
    p.rule = Rule::kAdagrad;
    p.state = state.as<float>();
    p.lr = static_cast<float>(lr);
    p.eps = static_cast<float>(eps);
    run(p, checked_uses(indices, grads, offsets, means, table), table, words, partials, on);
}

static void adamw_py(const Tensor& table, const Tensor& moment, const Tensor& state,
                     const Tensors& indices, const Tensors& grads, const Optionals& offsets,
                     const std::vector<bool>& means, double lr, double beta1, double beta2,
                     double eps, double weight_decay, int64_t step, const Tensor& words,
                     const Tensor& partials, const Execution& on) {
    expect_floating(table, "table");
    expect_device(table, "table");
    expect_rows(table, "table", "[rows, dim]");
    expect_dtype(moment, "moment", DType::kFloat32);
    expect_like(moment, "moment", table, "table");
    expect_rows(moment, "moment", "[rows, dim] float32");
    expect(moment.is_shape({table.size(0), table.size(1)}), "moment", "shaped like table", moment);
    check_state(state, "state", table);
    Params p{};
    p.rule = Rule::kAdamW;
    p.state = state.as<float>();
    p.moment = moment.as<float>();
    p.moment_stride = moment.stride(0);
    p.lr = static_cast<float>(lr);
    p.eps = static_cast<float>(eps);
    p.beta1 = static_cast<float>(beta1);
    p.beta2 = static_cast<float>(beta2);
    p.weight_decay = static_cast<float>(weight_decay);
    p.correction1 = static_cast<float>(1.0 - std::pow(beta1, static_cast<double>(step)));
    p.sqrt_correction2 =
        static_cast<float>(std::sqrt(1.0 - std::pow(beta2, static_cast<double>(step))));
    run(p, checked_uses(indices, grads, offsets, means, table), table, words, partials, on);
}

void register_op(py::module_& m) {
    m.def("row_wise_sums", &sums_py);
    m.def("row_wise_adagrad", &adagrad_py);
    m.def("row_wise_adamw", &adamw_py);
    m.def("row_wise_workspace", &workspace);
}

}  // namespace pylum::row_wise
