// The description of a ragged batch from Python's tensors: checked, then cut into sections.
// Included by binding.cpp files only.
#pragma once

#include <algorithm>
#include <vector>

#include "common/binding.h"
#include "common/sequence.h"

namespace pylum {

// The mask's tensors as they come from Python; 0 for no window and no min_full.
struct MaskTensors {
    const std::optional<Tensor>& num_context;
    const std::optional<Tensor>& num_targets;
    const std::optional<Tensor>& group_offsets;
    const std::optional<Tensor>& visible;
    int64_t window, min_full;
};

inline const int64_t* integers(const Tensor& t, const char* name, const std::string& dims,
                               int64_t size) {
    const std::string wanted = "[" + dims + " = " + std::to_string(size) + "] int64 on cpu";
    expect_cpu(t, name);
    expect_dtype(t, name, DType::kInt64);
    expect(t.is_shape({size}) && t.contiguous(), name, wanted, t);
    return t.as<int64_t>();
}

[[noreturn]] inline void fail_number(const std::string& name, const std::string& wanted,
                                     int64_t got) {
    throw py::value_error(name + " must be " + wanted + ", got " + std::to_string(got));
}

inline void check_offsets(const int64_t* offsets, int64_t count, int64_t total, const char* name) {
    if (offsets[0] != 0 || offsets[count] != total) {
        throw py::value_error(std::string(name) + " must run from 0 to " + std::to_string(total) +
                              ", got " + std::to_string(offsets[0]) + " to " +
                              std::to_string(offsets[count]));
    }
    for (int64_t i = 0; i < count; ++i) {
        if (offsets[i] > offsets[i + 1]) {
            throw py::value_error(std::string(name) + " must be non-decreasing, got " +
                                  std::to_string(offsets[i]) + " before " +
                                  std::to_string(offsets[i + 1]));
        }
    }
}

inline const int64_t* check_offsets(const Tensor& offsets, int64_t total) {
    expect_cpu(offsets, "offsets");
    expect_dtype(offsets, "offsets", DType::kInt64);
    expect(offsets.dims == 1 && offsets.size(0) >= 1 && offsets.contiguous(), "offsets",
           "[batch + 1] int64 on cpu", offsets);
    check_offsets(offsets.as<int64_t>(), offsets.size(0) - 1, total, "offsets");
    return offsets.as<int64_t>();
}

class BatchDescription {
  public:
    // `lengths`: history tokens of each sequence where they are cached, else null.
    BatchDescription(const Tensor& offsets_tensor, int64_t rows, const int64_t* lengths,
                     const MaskTensors& mask) {
        const int64_t* offsets = check_offsets(offsets_tensor, rows);
        const int64_t batch = offsets_tensor.size(0) - 1;
        const int64_t* context =
            mask.num_context ? integers(*mask.num_context, "num_context", "batch", batch) : nullptr;
        const int64_t* targets =
            mask.num_targets ? integers(*mask.num_targets, "num_targets", "batch", batch) : nullptr;
        sequences_.reserve(batch);
        for (int64_t b = 0; b < batch; ++b) {
            const int64_t own_rows = offsets[b + 1] - offsets[b];
            const std::string at = "[" + std::to_string(b) + "]";
            Sequence s{};
            s.first_row = offsets[b];
            s.first_target = num_targets_;
            s.targets = targets ? targets[b] : 0;
            if (s.targets < 0 || s.targets > own_rows) {
                fail_number("num_targets" + at, "in [0, " + std::to_string(own_rows) + " rows]",
                            s.targets);
            }
            const int64_t new_rows = own_rows - s.targets;
            s.history = lengths ? lengths[b] : new_rows;
            if (s.history < new_rows) {
                fail_number("prefix.lengths" + at,
                            "at least the " + std::to_string(new_rows) +
                                " history rows of q, which must be appended first",
                            s.history);
            }
            if (s.history > INT32_MAX - kBlockKeys) {
                fail_number("the history of a sequence", "below 2^31 tokens", s.history);
            }
            s.cached = s.history - new_rows;
            s.context = context ? context[b] : 0;
            if (s.context < 0 || s.context > s.history) {
                fail_number("num_context" + at,
                            "in [0, " + std::to_string(s.history) + " history tokens]", s.context);
            }
            s.first_key = num_keys_;
            num_targets_ += s.targets;
            num_keys_ += s.history + s.targets;
            sequences_.push_back(s);
        }
        group_begin_.resize(num_targets_);
        visible_.resize(num_targets_);
        fill_groups(mask);
        fill_visible(mask);
        batch_ = {.sequences = sequences_.data(),
                  .visible = visible_.data(),
                  .group_begin = group_begin_.data(),
                  .batch = batch,
                  .window = mask.window,
                  .min_full = mask.min_full};
        cut();
    }

    const Batch& batch() const { return batch_; }
    int64_t num_targets() const { return num_targets_; }
    // Histories, cached tokens too, and targets.
    int64_t num_keys() const { return num_keys_; }
    const std::vector<Section>& sections() const { return sections_; }
    const std::vector<int64_t>& section_offsets() const { return section_offsets_; }
    // Sequences in the order of section_offsets().
    const std::vector<int64_t>& order() const { return order_; }
    // About the pairs of row and key.
    int64_t cost() const { return cost_; }

  private:
    void fill_groups(const MaskTensors& mask) {
        if (!mask.group_offsets) {
            for (int64_t i = 0; i < num_targets_; ++i) {
                group_begin_[i] = i;
            }
            return;
        }
        const Tensor& tensor = *mask.group_offsets;
        expect_cpu(tensor, "group_offsets");
        expect_dtype(tensor, "group_offsets", DType::kInt64);
        expect(tensor.dims == 1 && tensor.size(0) >= 1 && tensor.contiguous(), "group_offsets",
               "[groups + 1] int64 on cpu", tensor);
        const int64_t* offsets = tensor.as<int64_t>();
        const int64_t groups = tensor.size(0) - 1;
        check_offsets(offsets, groups, num_targets_, "group_offsets");
        for (int64_t g = 0; g < groups; ++g) {
            for (int64_t i = offsets[g]; i < offsets[g + 1]; ++i) {
                group_begin_[i] = offsets[g];
            }
        }
        for (const Sequence& s : sequences_) {
            if (s.targets > 0 && group_begin_[s.first_target] != s.first_target) {
                throw py::value_error(
                    "group_offsets must start a group with each sequence's targets: a group "
                    "spans target " +
                    std::to_string(s.first_target) + ", the first of its sequence");
            }
        }
    }

    void fill_visible(const MaskTensors& mask) {
        const int64_t* visible =
            mask.visible ? integers(*mask.visible, "visible", "targets", num_targets_) : nullptr;
        for (const Sequence& s : sequences_) {
            for (int64_t i = s.first_target; i < s.first_target + s.targets; ++i) {
                visible_[i] = s.history;
                if (!visible) {
                    continue;
                }
                const std::string name = "visible[" + std::to_string(i) + "]";
                const int64_t most = s.history - s.context;
                if (visible[i] < 0 || visible[i] > most) {
                    fail_number(name, "in [0, " + std::to_string(most) + " history tokens]",
                                visible[i]);
                }
                if (group_begin_[i] != i && visible[i] != visible[i - 1]) {
                    fail_number(name, "constant in a group: " + std::to_string(visible[i - 1]),
                                visible[i]);
                }
                if (i > s.first_target && visible[i] < visible[i - 1]) {
                    fail_number(name,
                                "non-decreasing within a sequence: at least " +
                                    std::to_string(visible[i - 1]),
                                visible[i]);
                }
                visible_[i] = s.context + visible[i];
            }
        }
    }

    // Sequences of the most pairs of row and key first, and in them the sections of the most keys,
    // so that threads end together.
    void cut() {
        const int64_t batch = static_cast<int64_t>(sequences_.size());
        std::vector<int64_t> cost(batch);
        order_.resize(batch);
        for (int64_t b = 0; b < batch; ++b) {
            const Sequence& s = sequences_[b];
            cost[b] = (s.history - s.cached) * (s.history + s.cached) / 2 + s.targets * s.history;
            cost_ += cost[b] + s.history - s.cached + s.targets;
            order_[b] = b;
        }
        std::stable_sort(order_.begin(), order_.end(),
                         [&](int64_t a, int64_t b) { return cost[a] > cost[b]; });
        section_offsets_.push_back(0);
        for (const int64_t b : order_) {
            const Sequence& s = sequences_[b];
            add_sections(b, 0, s.targets, true);
            add_sections(b, s.cached, s.history, false);
            section_offsets_.push_back(static_cast<int64_t>(sections_.size()));
        }
    }

    void add_sections(int64_t b, int64_t begin, int64_t end, bool targets) {
        const int64_t count = (end - begin + kTaskRows - 1) / kTaskRows;
        for (int64_t i = count - 1; i >= 0; --i) {
            const int64_t first = begin + i * kTaskRows;
            sections_.push_back(
                {.sequence = static_cast<int32_t>(b),
                 .rows = static_cast<int32_t>(std::min<int64_t>(kTaskRows, end - first)),
                 .first = first,
                 .targets = targets});
        }
    }

    std::vector<Sequence> sequences_;
    std::vector<int64_t> group_begin_, visible_, order_, section_offsets_;
    std::vector<Section> sections_;
    int64_t num_targets_ = 0, num_keys_ = 0, cost_ = 0;
    Batch batch_{};
};

}  // namespace pylum
