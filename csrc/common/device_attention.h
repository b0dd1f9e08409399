// The parameters of the attention kernels on CUDA, from Python's tensors. Their values stand on the
// device: the kernels check them. Included by binding.cpp files only.
#pragma once

#include "common/attention_checks.h"
#include "common/cuda/attention.h"

namespace pylum {

// The device's int64 tensors of a call, all where q is.
inline const int64_t* device_integers(const std::optional<Tensor>& t, const char* name,
                                      const std::string& dims, int64_t size, const Tensor& q) {
    if (!t) {
        return nullptr;
    }
    expect_like(*t, name, q, "q");
    expect_dtype(*t, name, DType::kInt64);
    expect(t->dims == 1 && (size < 0 || t->size(0) == size) && t->contiguous(), name,
           "[" + dims + (size < 0 ? "" : " = " + std::to_string(size)) + "] int64", *t);
    return t->as<int64_t>();
}

// int64 words that describe the batch, and floats for the sums of the targets' chunks.
struct DeviceWorkspace {
    int64_t words, floats;
};

constexpr int64_t kSequenceWords = sizeof(Sequence) / sizeof(int64_t);

constexpr int64_t kBiasWords =
    kGapCells * (sizeof(GapCell) + sizeof(cuda::BiasCell)) / sizeof(int64_t);

inline DeviceWorkspace device_workspace(const Tensor& q, int64_t value_dim, const Tensor& offsets,
                                        int64_t targets, int64_t chunks) {
    return {kBiasWords + (kSequenceWords + 2) * offsets.numel() + 1,
            chunks * targets * q.size(1) * (value_dim + 2)};
}

// Chunks of targets get blocks of their own where their sums fit in 256 MiB; results are the same.
inline int64_t device_chunks(const Tensor& q, int64_t value_dim, int64_t targets,
                             int64_t table_width) {
    const int64_t chunks = (table_width * kBlockKeys + kChunkKeys - 1) / kChunkKeys;
    const int64_t floats = chunks * targets * q.size(1) * (value_dim + 2);
    return chunks < 1 || chunks > 65535 || floats > (int64_t{64} << 20) ? 1 : chunks;
}

inline const float* device_table(const Tensor& t, const char* name, const std::string& wanted,
                                 bool ok, const Tensor& q) {
    expect_like(t, name, q, "q");
    expect_dtype(t, name, DType::kFloat32);
    expect(t.dims == 1 && t.contiguous() && t.size(0) < (int64_t{1} << 30) && ok, name,
           wanted + " float32, contiguous", t);
    return t.as<float>();
}

// `keys`: how many timestamps there must be, or -1 where only the device knows.
inline RelativeBias device_bias(const BiasTensors& given, const Tensor& q, int64_t keys,
                                bool silu) {
    RelativeBias b{};
    if (given.position_table) {
        const Tensor& t = *given.position_table;
        b.positions = device_table(t, "bias.position_table", "[2 length - 1]",
                                   t.dims == 1 && t.size(0) % 2 == 1, q);
        b.length = (t.size(0) + 1) / 2;
    }
    if (given.time_table) {
        const Tensor& t = *given.time_table;
        b.buckets = t.dims == 1 ? t.size(0) - 1 : 0;
        b.times = device_table(t, "bias.time_table", "[buckets + 1]", b.buckets >= 0, q);
        const auto column = [&](const std::optional<Tensor>& x, const char* name, const char* dims,
                                int64_t size) {
            if (!x) {
                throw py::value_error(std::string(name) +
                                      " must be given with bias.time_table, got None");
            }
            return device_integers(x, name, dims, size, q);
        };
        b.thresholds = column(given.thresholds, "bias.thresholds", "buckets", b.buckets);
        b.timestamps = column(given.timestamps, "bias.timestamps", "keys", keys);
        b.query_times = column(given.query_times, "bias.query_times", "rows", q.size(0));
    }
    if (b.given() && !silu) {
        throw py::value_error("bias must be None with score=\"softmax\"");
    }
    return b;
}

// `lengths` and `table_width` where histories are in pages; then k holds targets only.
inline cuda::AttentionParams device_attention(
    const AttentionInputs& in, const Tensor& q, const Tensor& k, const Tensor& offsets,
    const std::optional<Tensor>& lengths, int64_t table_width, const MaskTensors& mask,
    const BiasTensors& bias, const std::optional<Tensor>& workspace,
    const std::optional<Tensor>& parts, const Execution& on) {
    expect(offsets.dims == 1 && offsets.size(0) >= 1, "offsets", "[batch + 1] int64", offsets);
    const int64_t batch = offsets.size(0) - 1;
    cuda::AttentionParams p{};
    p.in = in;
    p.in.batch.batch = batch;
    p.in.batch.window = mask.window;
    p.in.batch.min_full = mask.min_full;
    cuda::DeviceBatch& d = p.batch;
    d.offsets = device_integers(offsets, "offsets", "batch + 1", batch + 1, q);
    d.lengths = device_integers(lengths, "prefix.lengths", "batch", batch, q);
    d.num_context = device_integers(mask.num_context, "num_context", "batch", batch, q);
    d.num_targets = device_integers(mask.num_targets, "num_targets", "batch", batch, q);
    d.group_offsets = device_integers(mask.group_offsets, "group_offsets", "groups + 1", -1, q);
    d.visible = device_integers(mask.visible, "visible", "targets", -1, q);
    d.batch = batch;
    d.rows = q.size(0);
    d.groups = mask.group_offsets ? mask.group_offsets->numel() - 1 : 0;
    d.key_targets = lengths ? k.size(0) : -1;
    d.visible_targets = mask.visible ? mask.visible->numel() : 0;
    d.table_width = table_width;
    p.in.bias = device_bias(bias, q, lengths ? -1 : q.size(0), in.silu);
    d.keys = lengths && p.in.bias.times ? bias.timestamps->numel() : -1;
    p.targets = !mask.num_targets ? 0 : lengths ? k.size(0) : q.size(0);
    p.chunks = lengths ? device_chunks(q, in.value_dim, p.targets, table_width) : 1;
    p.errors = on.errors;
    const DeviceWorkspace need = device_workspace(q, in.value_dim, offsets, p.targets, p.chunks);
    if (!workspace || workspace->numel() < need.words ||
        (parts ? parts->numel() : 0) < need.floats) {
        throw py::value_error("the workspace is too small");
    }
    p.parts = need.floats ? parts->as<float>() : nullptr;
    p.bias.buckets = workspace->as<GapCell>();
    p.bias.cells = reinterpret_cast<cuda::BiasCell*>(p.bias.buckets + kGapCells);
    p.in.bias.cells = p.bias.buckets;
    d.sequences = reinterpret_cast<Sequence*>(workspace->as<int64_t>() + kBiasWords);
    d.history_tiles = workspace->as<int64_t>() + kBiasWords + kSequenceWords * batch;
    d.target_tiles = d.history_tiles + batch + 1;
    d.broken = d.target_tiles + batch + 1;
    p.in.batch.sequences = d.sequences;
    return p;
}

}  // namespace pylum
