// Lookups are sorted by row; one task then owns 32 rows: it sums each row's gradients and updates
// the row once. Reads each gradient once and reads and writes each touched row once; bound by the
// latency of random rows, so gradients and rows are prefetched.
#include <cmath>

#include "common/bfloat16.h"
#include "common/prefetch.h"
#include "row_wise/cpu/sort.h"

namespace pylum::row_wise::PYLUM_ISA {
namespace {

constexpr int64_t kRows = 32;        // rows of a task
constexpr int64_t kAhead = 16;       // lookups and rows prefetched early
constexpr int kLanes = 16;           // partial sums of a square
constexpr int64_t kSerial = 32'768;  // elements below which a team of threads costs more

inline int64_t element_size(DType dtype) { return dtype == DType::kFloat32 ? 4 : 2; }

struct Source {
    const Use* use;
    int64_t grad_row;  // of this use
    const char* data;
};

inline Source source_of(const Params& p, const Sorted& s, int64_t at) {
    int64_t grad_row = static_cast<int64_t>(s.keys[at] & ((uint64_t{1} << s.shift) - 1));
    const Use* use = p.uses;
    while (grad_row >= use->grad_rows) {
        grad_row -= use->grad_rows;
        ++use;
    }
    const int64_t start = grad_row * use->grad_stride * element_size(use->grad_dtype);
    return {use, grad_row, static_cast<const char*>(use->grad) + start};
}

template <typename T>
inline void add(const T* __restrict x, float scale, int64_t dim, bool first,
                float* __restrict sum) {
    if (first) {
        for (int64_t d = 0; d < dim; ++d) {
            sum[d] = scale * to_float(x[d]);
        }
    } else {
        for (int64_t d = 0; d < dim; ++d) {
            sum[d] += scale * to_float(x[d]);
        }
    }
}

// sum = gradients of the sorted lookups [begin, end), which are all of one row.
void sum_lookups(const Params& p, const Sorted& s, int64_t begin, int64_t end, float* sum) {
    for (int64_t at = begin; at < end; ++at) {
        if (at + kAhead < s.lookups) {
            const Source next = source_of(p, s, at + kAhead);
            prefetch(next.data, p.dim * element_size(next.use->grad_dtype));
        }
        const Source source = source_of(p, s, at);
        const Use& use = *source.use;
        float scale = 1.0f;
        if (use.offsets && use.mean) {
            const int64_t* o = use.offsets + source.grad_row;
            scale = 1.0f / static_cast<float>(o[1] - o[0]);
        }
        if (use.grad_dtype == DType::kFloat32) {
            add(reinterpret_cast<const float*>(source.data), scale, p.dim, at == begin, sum);
        } else {
            add(reinterpret_cast<const bfloat16*>(source.data), scale, p.dim, at == begin, sum);
        }
    }
}

inline float mean_square(const float* g, int64_t dim) {
    float sums[kLanes] = {};
    int64_t d = 0;
    for (; d + kLanes <= dim; d += kLanes) {
        for (int l = 0; l < kLanes; ++l) {
            sums[l] += g[d + l] * g[d + l];
        }
    }
    for (int l = 0; d < dim; ++d, ++l) {
        sums[l] += g[d] * g[d];
    }
    for (int width = kLanes / 2; width > 0; width /= 2) {
        for (int l = 0; l < width; ++l) {
            sums[l] += sums[l + width];
        }
    }
    return sums[0] / static_cast<float>(dim);
}

template <typename T>
void update(const Params& p, int64_t row, const float* __restrict g) {
    T* __restrict x = static_cast<T*>(p.table) + row * p.table_stride;
    if (p.rule == Rule::kSum) {
        for (int64_t d = 0; d < p.dim; ++d) {
            from_float(g[d], x + d);
        }
    } else if (p.rule == Rule::kAdagrad) {
        p.state[row] += mean_square(g, p.dim);
        const float rate = p.lr / (std::sqrt(p.state[row]) + p.eps);
        for (int64_t d = 0; d < p.dim; ++d) {
            from_float(to_float(x[d]) - rate * g[d], x + d);
        }
    } else {
        float* __restrict moment = p.moment + row * p.moment_stride;
        p.state[row] = p.beta2 * p.state[row] + (1.0f - p.beta2) * mean_square(g, p.dim);
        const float denominator = std::sqrt(p.state[row]) / p.sqrt_correction2 + p.eps;
        const float rate = p.lr / p.correction1 / denominator;
        const float keep = 1.0f - p.lr * p.weight_decay;
        for (int64_t d = 0; d < p.dim; ++d) {
            moment[d] = p.beta1 * moment[d] + (1.0f - p.beta1) * g[d];
            from_float(keep * to_float(x[d]) - rate * moment[d], x + d);
        }
    }
}

[[gnu::always_inline]] inline void prefetch_row(const Params& p, int64_t row) {
    const int64_t size = element_size(p.dtype);
    prefetch(static_cast<const char*>(p.table) + row * p.table_stride * size, p.dim * size);
    if (p.rule != Rule::kSum) {
        __builtin_prefetch(p.state + row);
    }
    if (p.rule == Rule::kAdamW) {
        prefetch(p.moment + row * p.moment_stride, 4 * p.dim);
    }
}

struct Plan {
    const uint64_t* begins;  // [rows + 1] where the lookups of each touched row begin
    const uint64_t* pieces;  // [num_pieces, 2] begin and end
    int64_t rows, num_pieces;
};

Plan plan_rows(const Params& p, const Sorted& s) {
    uint64_t* begins = s.free;
    int64_t rows = 0;
    for (int64_t at = 0; at < s.lookups; ++at) {
        if (at == 0 || s.keys[at] >> s.shift != s.keys[at - 1] >> s.shift) {
            begins[rows++] = static_cast<uint64_t>(at);
        }
    }
    begins[rows] = static_cast<uint64_t>(s.lookups);
    uint64_t* pieces = p.words + 2 * (s.lookups + 1);
    int64_t num_pieces = 0;
    for (int64_t r = 0; r < rows; ++r) {
        if (begins[r + 1] - begins[r] > kPiece) {
            for (uint64_t begin = begins[r]; begin < begins[r + 1]; begin += kPiece) {
                const uint64_t end = begin + kPiece;
                pieces[2 * num_pieces] = begin;
                pieces[2 * num_pieces + 1] = end < begins[r + 1] ? end : begins[r + 1];
                ++num_pieces;
            }
        }
    }
    return {begins, pieces, rows, num_pieces};
}

// sum = the pieces of a row whose lookups begin at `begin` and end at `end`, left to right.
void sum_pieces(const Params& p, const Plan& plan, uint64_t begin, uint64_t end, float* sum) {
    int64_t piece = 0, above = plan.num_pieces;
    while (above - piece > 1) {
        const int64_t middle = piece + (above - piece) / 2;
        (plan.pieces[2 * middle] <= begin ? piece : above) = middle;
    }
    for (bool first = true; piece < plan.num_pieces && plan.pieces[2 * piece] < end; ++piece) {
        add(p.partials + piece * p.dim, 1.0f, p.dim, first, sum);
        first = false;
    }
}

template <typename T>
void update_rows(const Params& p, const Sorted& s, const Plan& plan, int64_t from, int64_t to) {
    float* sum = static_cast<float*>(__builtin_alloca(p.dim * sizeof(float)));
    for (int64_t r = from; r < to; ++r) {
        if (r + kAhead < plan.rows) {
            prefetch_row(p, static_cast<int64_t>(s.keys[plan.begins[r + kAhead]] >> s.shift));
        }
        const uint64_t begin = plan.begins[r], end = plan.begins[r + 1];
        if (end - begin > kPiece) {
            sum_pieces(p, plan, begin, end, sum);
        } else {
            sum_lookups(p, s, begin, end, sum);
        }
        update<T>(p, static_cast<int64_t>(s.keys[begin] >> s.shift), sum);
    }
}

}  // namespace

void forward(const Params& p) {
    const Sorted s = sort_lookups(p);
    if (!s.good || p.dim == 0) {
        *p.good = s.good;
        return;
    }
    const int threads = s.lookups * p.dim < kSerial ? 1 : p.threads;
    const Plan plan = plan_rows(p, s);
    parallel_for(plan.num_pieces, threads, [&](int64_t piece) {
        const uint64_t* bounds = plan.pieces + 2 * piece;
        sum_lookups(p, s, bounds[0], bounds[1], p.partials + piece * p.dim);
    });
    parallel_for((plan.rows + kRows - 1) / kRows, threads, [&](int64_t task) {
        const int64_t from = task * kRows;
        const int64_t to = from + kRows < plan.rows ? from + kRows : plan.rows;
        if (p.dtype == DType::kFloat32) {
            update_rows<float>(p, s, plan, from, to);
        } else {
            update_rows<bfloat16>(p, s, plan, from, to);
        }
    });
}

}  // namespace pylum::row_wise::PYLUM_ISA
