// Checks of q, k and v that the attention ops share. Included by binding.cpp files only.
#pragma once

#include "common/attention_inputs.h"
#include "common/batch_description.h"

namespace pylum {

constexpr int64_t kMaxHeadDim = 256;

inline void check_heads(const Tensor& q, const Tensor& k, const Tensor& v) {
    expect_device(q, "q");
    expect_floating(q, "q");
    expect(q.dims == 3 && q.size(1) >= 1 && q.last_contiguous(), "q",
           "[total, heads, head_dim], last dimension contiguous", q);
    expect(q.size(2) >= 1 && q.size(2) <= kMaxHeadDim, "q", "of a head_dim of 1 to 256", q);
    for (const auto& [x, name] : {std::pair{&k, "k"}, std::pair{&v, "v"}}) {
        expect_like(*x, name, q, "q");
        if (x->dtype != q.dtype) {
            fail_type(name, std::string(dtype_name(q.dtype)) + " like q", *x);
        }
        expect(x->dims == 3 && x->last_contiguous(), name,
               "[total, kv_heads, dim], last dimension contiguous", *x);
    }
    expect(k.size(1) >= 1 && q.size(1) % k.size(1) == 0, "k",
           "of a number of heads that divides the " + std::to_string(q.size(1)) + " of q", k);
    expect(k.size(2) == q.size(2), "k", "of head_dim " + std::to_string(q.size(2)) + " like q", k);
    expect(v.size(1) == k.size(1), "v", "of " + std::to_string(k.size(1)) + " heads like k", v);
    expect(v.size(2) >= 1 && v.size(2) <= kMaxHeadDim, "v", "of a value_dim of 1 to 256", v);
}

inline void check_rows(const Tensor& q, const Tensor& x, const char* name) {
    expect(x.size(0) == q.size(0), name, "of " + std::to_string(q.size(0)) + " rows like q", x);
}

inline AttentionInputs describe_inputs(const Tensor& q, const Tensor& k, const Tensor& v, bool silu,
                                       double scale, const std::optional<Tensor>& score_scales,
                                       double score_scale) {
    if (score_scales) {
        expect_like(*score_scales, "score_scale", q, "q");
        expect_dtype(*score_scales, "score_scale", DType::kFloat32);
        expect(score_scales->is_shape({q.size(0)}) && score_scales->contiguous(), "score_scale",
               "[total = " + std::to_string(q.size(0)) + "] float32 or a number", *score_scales);
    }
    return {.dtype = q.dtype,
            .q = q.data,
            .k = k.data,
            .v = v.data,
            .q_row = q.stride(0),
            .q_head = q.stride(1),
            .k_row = k.stride(0),
            .k_head = k.stride(1),
            .v_row = v.stride(0),
            .v_head = v.stride(1),
            .heads = q.size(1),
            .kv_heads = k.size(1),
            .head_dim = q.size(2),
            .value_dim = v.size(2),
            .k_pages = nullptr,
            .v_pages = nullptr,
            .table = nullptr,
            .table_row = 0,
            .batch = {},
            .sections = nullptr,
            .section_offsets = nullptr,
            .silu = silu,
            .scale = static_cast<float>(scale),
            .score_scales = score_scales ? score_scales->as<float>() : nullptr,
            .score_scale = static_cast<float>(score_scale),
            .bias = {},
            .out = nullptr,
            .lse = nullptr,
            .threads = 1};
}

// The bias's tensors as they come from Python.
struct BiasTensors {
    const std::optional<Tensor>& position_table;
    const std::optional<Tensor>& time_table;
    const std::optional<Tensor>& thresholds;
    const std::optional<Tensor>& timestamps;
    const std::optional<Tensor>& query_times;
};

inline const float* bias_table(const Tensor& t, const char* name, const std::string& wanted,
                               bool ok) {
    expect_cpu(t, name);
    expect_dtype(t, name, DType::kFloat32);
    expect(t.dims == 1 && t.contiguous() && ok, name, wanted + " float32, contiguous", t);
    return t.as<float>();
}

// The relative bias, checked, with its cells.
class BiasDescription {
  public:
    BiasDescription(const BiasTensors& given, const BatchDescription& batch, int64_t rows,
                    bool silu) {
        if (given.position_table) {
            const Tensor& t = *given.position_table;
            bias_.positions = bias_table(t, "bias.position_table", "[2 length - 1]",
                                         t.dims == 1 && t.size(0) % 2 == 1);
            bias_.length = (t.size(0) + 1) / 2;
        }
        if (given.time_table) {
            fill_times(given, batch, rows);
        }
        if (bias_.given() && !silu) {
            throw py::value_error("bias must be None with score=\"softmax\"");
        }
    }

    RelativeBias bias() const {
        RelativeBias out = bias_;
        out.cells = cells_;
        return out;
    }

  private:
    void fill_times(const BiasTensors& given, const BatchDescription& batch, int64_t rows) {
        for (const auto& [tensor, name] : {std::pair{&given.thresholds, "bias.thresholds"},
                                           std::pair{&given.timestamps, "bias.timestamps"},
                                           std::pair{&given.query_times, "bias.query_times"}}) {
            if (!*tensor) {
                throw py::value_error(std::string(name) +
                                      " must be given with bias.time_table, got None");
            }
        }
        const Tensor& table = *given.time_table;
        const int64_t buckets = table.dims == 1 ? table.size(0) - 1 : 0;
        bias_.times =
            bias_table(table, "bias.time_table", "[buckets + 1]", table.dims == 1 && buckets >= 0);
        bias_.buckets = buckets;
        bias_.thresholds = integers(*given.thresholds, "bias.thresholds", "buckets", buckets);
        for (int64_t i = 0; i < buckets; ++i) {
            const int64_t least = i == 0 ? 0 : bias_.thresholds[i - 1];
            if (bias_.thresholds[i] < least) {
                fail_number("bias.thresholds[" + std::to_string(i) + "]",
                            "non-decreasing: at least " + std::to_string(least),
                            bias_.thresholds[i]);
            }
        }
        bias_.timestamps = integers(*given.timestamps, "bias.timestamps", "keys", batch.num_keys());
        bias_.query_times = integers(*given.query_times, "bias.query_times", "rows", rows);
        int64_t bucket = 0;
        for (int cell = 0; cell < kGapCells; ++cell) {
            while (bucket < buckets &&
                   static_cast<uint64_t>(bias_.thresholds[bucket]) <= least_gap(cell)) {
                ++bucket;
            }
            const bool more = bucket < buckets;
            cells_[cell] = {more ? static_cast<uint64_t>(bias_.thresholds[bucket]) - 1 : UINT64_MAX,
                            bucket};
        }
    }

    RelativeBias bias_{};
    GapCell cells_[kGapCells] = {};
};

// Below this many pairs of row and key, times heads, a team of threads costs more than it saves.
constexpr int64_t kSerialCost = 1 << 16;

// `batch` must outlive the call.
inline void describe_work(AttentionInputs& p, const BatchDescription& batch, int threads) {
    p.batch = batch.batch();
    p.sections = batch.sections().data();
    p.section_offsets = batch.section_offsets().data();
    p.threads = batch.cost() * p.heads < kSerialCost ? 1 : threads;
}

}  // namespace pylum
