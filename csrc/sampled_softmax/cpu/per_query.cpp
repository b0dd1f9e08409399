// Negatives of each query's own: rows gathered one by one, bound as much by their bytes as by the
// arithmetic. One task per block of queries leaves their exponentials and d_queries; d_items is
// then gathered from the exponentials by ranges of items.
#include <string.h>

#include "sampled_softmax/cpu/rows.h"

namespace pylum::sampled_softmax::PYLUM_ISA {
namespace {

constexpr int64_t kTaskQueries = 16;

template <typename T>
void query(const Params& p, const Layout& at, int64_t n) {
    const int64_t count = p.num_negatives;
    const int64_t* rows = p.negatives + n * count;
    const int64_t target_row = p.targets[n];
    const int64_t target_id = item_id(p, target_row);
    float* e = p.workspace + at.exponents + n * count;
    float* x = p.workspace + at.weighted + n * at.width;
    copy_scaled(x, p.inverse_temperature, query_row<T>(p, n), p.dim, at.width);
    const auto logit = [&](int64_t row) {
        return dot(x, item_row<T>(p, row), p.dim) - (p.log_q ? p.log_q[row] : 0.0f);
    };
    const float target = logit(target_row);
    float shift = target;
    for (int64_t j = 0; j < count; ++j) {
        e[j] = item_id(p, rows[j]) == target_id ? -kInfinity : logit(rows[j]);
        shift = e[j] > shift ? e[j] : shift;
    }
    vfloat total{};
    int64_t j = 0;
    for (; j + kLanes <= count; j += kLanes) {
        const vfloat part = exp(load(e + j) - shift);
        total += part;
        store(e + j, part);
    }
    float sum_others = sum(total);
    for (; j < count; ++j) {
        e[j] = expf(e[j] - shift);
        sum_others += e[j];
    }
    p.losses[n] = loss_of(sum_others, shift, target);
    if (!p.d_queries && !p.d_items) {
        return;
    }
    float* others = p.workspace + at.others;
    T* out = static_cast<T*>(p.d_queries) + n * p.dim;
    if (p.scales[n] == 0) {
        others[n] = 0;
        memset(e, 0, count * sizeof(float));
        memset(x, 0, at.width * sizeof(float));
        if (p.d_queries) {
            memset(out, 0, p.dim * sizeof(T));
        }
        return;
    }
    others[n] = sum_others;
    const float factor = p.scales[n] / (sum_others + expf(target - shift)) * p.inverse_temperature;
    copy_scaled(x, factor, query_row<T>(p, n), p.dim, at.width);
    if (p.d_queries) {
        float* d = p.workspace + at.d_query + n * at.width;
        memset(d, 0, at.width * sizeof(float));
        for (j = 0; j < count; ++j) {
            add_scaled(d, e[j], item_row<T>(p, rows[j]), p.dim);
        }
        add_scaled(d, -sum_others, item_row<T>(p, target_row), p.dim);
        write_row(out, d, factor, p.dim);
    }
}

template <typename T>
void run(const Params& p) {
    const Layout at(p);
    const int64_t tasks = (p.num_queries + kTaskQueries - 1) / kTaskQueries;
    parallel_for(tasks, p.threads, [&](int64_t task) {
        const int64_t end = (task + 1) * kTaskQueries;
        for (int64_t n = task * kTaskQueries; n < end && n < p.num_queries; ++n) {
            query<T>(p, at, n);
        }
    });
    if (!p.d_items) {
        return;
    }
    const float* exponents = p.workspace + at.exponents;
    const float* weighted = p.workspace + at.weighted;
    scatter_items<T>(p, at, [&](float* table, int64_t begin, int64_t end) {
        for (int64_t n = 0; n < p.num_queries; ++n) {
            const int64_t first = n * p.num_negatives;
            for (int64_t i = first; i < first + p.num_negatives; ++i) {
                const int64_t row = p.negatives[i];
                if (row >= begin && row < end) {
                    add_scaled(table + row * at.width, exponents[i], weighted + n * at.width,
                               at.width);
                }
            }
        }
    });
}

}  // namespace

void forward_per_query(const Params& p) {
    p.dtype == DType::kFloat32 ? run<float>(p) : run<bfloat16>(p);
}

}  // namespace pylum::sampled_softmax::PYLUM_ISA
