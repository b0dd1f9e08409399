// Checks of q, k and v that the attention ops share. Included by binding.cpp files only.
#pragma once

#include "common/attention_inputs.h"
#include "common/batch_description.h"

namespace pylum {

constexpr int64_t kMaxHeadDim = 256;

inline void check_heads(const Tensor& q, const Tensor& k, const Tensor& v) {
    expect_cpu(q, "q");
    expect_floating(q, "q");
    expect(q.dims == 3 && q.size(1) >= 1 && q.last_contiguous(), "q",
           "[total, heads, head_dim], last dimension contiguous", q);
    expect(q.size(2) >= 1 && q.size(2) <= kMaxHeadDim, "q", "of a head_dim of 1 to 256", q);
    for (const auto& [x, name] : {std::pair{&k, "k"}, std::pair{&v, "v"}}) {
        expect_cpu(*x, name);
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
        expect_cpu(*score_scales, "score_scale");
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
            .out = nullptr,
            .lse = nullptr,
            .threads = 1};
}

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
