// What the shared and the per-query kernel do to one row of dim values.
#pragma once

#include <math.h>

#include "common/cpu/rows.h"
#include "common/cpu/tile.h"
#include "common/parallel.h"
#include "sampled_softmax/sampled_softmax.h"

namespace pylum::sampled_softmax {
namespace {

template <typename T>
inline const T* query_row(const Params& p, int64_t n) {
    return static_cast<const T*>(p.queries) + n * p.queries_stride;
}

template <typename T>
inline const T* item_row(const Params& p, int64_t row) {
    return static_cast<const T*>(p.items) + row * p.items_stride;
}

inline int64_t item_id(const Params& p, int64_t row) { return p.item_ids ? p.item_ids[row] : row; }

// <a, b>; a is float32 and padded with zeros to whole vectors.
template <typename T>
inline float dot(const float* a, const T* b, int64_t dim) {
    vfloat total{};
    int64_t i = 0;
    for (; i + kLanes <= dim; i += kLanes) {
        total += load(a + i) * load(b + i);
    }
    if (i < dim) {
        total += load(a + i) * load_first(b + i, static_cast<int>(dim - i));
    }
    return sum(total);
}

// y += factor * x; y is padded to whole vectors.
template <typename T>
inline void add_scaled(float* y, float factor, const T* x, int64_t dim) {
    int64_t i = 0;
    for (; i + kLanes <= dim; i += kLanes) {
        store(y + i, load(y + i) + factor * load(x + i));
    }
    if (i < dim) {
        store(y + i, load(y + i) + factor * load_first(x + i, static_cast<int>(dim - i)));
    }
}

// y = factor * x, padded with zeros to width.
template <typename T>
inline void copy_scaled(float* y, float factor, const T* x, int64_t dim, int64_t width) {
    for (int64_t i = 0; i < dim; ++i) {
        y[i] = factor * to_float(x[i]);
    }
    for (int64_t i = dim; i < width; ++i) {
        y[i] = 0;
    }
}

// log(others * e^shift + e^target) - target, where shift >= target. Where the target leads, the
// loss is small and log1p keeps its digits.
inline float loss_of(float others, float shift, float target) {
    const double ahead = static_cast<double>(shift) - target;
    if (ahead < 1) {
        return static_cast<float>(log1p(others * ::exp(ahead)));
    }
    return static_cast<float>(log(others + ::exp(-ahead)) + ahead);
}

template <typename T>
inline void write_row(T* out, const float* x, float factor, int64_t dim) {
    for (int64_t i = 0; i < dim; ++i) {
        from_float(factor * x[i], out + i);
    }
}

// Where d_items is summed: the output itself, or workspace that write_items() rounds.
inline float* table_of(const Params& p, const Layout& at) {
    return Layout::in_place(p) ? static_cast<float*>(p.d_items) : p.workspace + at.table;
}

template <typename T>
inline void write_items(const Params& p, const Layout& at, int64_t begin, int64_t end) {
    if (!Layout::in_place(p)) {
        for (int64_t row = begin; row < end; ++row) {
            write_row(static_cast<T*>(p.d_items) + row * p.dim,
                      p.workspace + at.table + row * at.width, 1.0f, p.dim);
        }
    }
}

// d_items where negatives are rows: add_negatives(table, begin, end) adds theirs to the items of a
// range, then each target gets -others[n] * weighted[n]. A range of items is one task that reads
// the queries in order, so the sums do not depend on the number of tasks.
template <typename T, typename AddNegatives>
inline void scatter_items(const Params& p, const Layout& at, const AddNegatives& add_negatives) {
    const float* others = p.workspace + at.others;
    const float* weighted = p.workspace + at.weighted;
    float* table = table_of(p, at);
    const int64_t ranges = p.threads > 1 ? 2 * p.threads : 1;
    parallel_for(ranges, p.threads, [&](int64_t range) {
        const int64_t begin = p.num_items * range / ranges;
        const int64_t end = p.num_items * (range + 1) / ranges;
        for (int64_t i = begin * at.width; i < end * at.width; ++i) {
            table[i] = 0;
        }
        add_negatives(table, begin, end);
        for (int64_t n = 0; n < p.num_queries; ++n) {
            const int64_t row = p.targets[n];
            if (row >= begin && row < end && others[n] != 0) {
                add_scaled(table + row * at.width, -others[n], weighted + n * at.width, at.width);
            }
        }
        write_items<T>(p, at, begin, end);
    });
}

}  // namespace
}  // namespace pylum::sampled_softmax
