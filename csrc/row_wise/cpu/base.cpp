// Lookups are sorted by row; one task then owns 256 rows: it sums each row's gradients and updates
// the row once. Reads each gradient once and reads and writes each touched row once; bound by the
// latency of random rows, so gradients and rows are prefetched. On small pages of memory every
// prefetch waits for the translation of its address: the fewer instructions between them, the more
// of them the processor overlaps.
#include <cmath>

#include "common/cpu/rows.h"
#include "common/prefetch.h"
#include "row_wise/cpu/sort.h"

namespace pylum::row_wise::PYLUM_ISA {
namespace {

constexpr int64_t kRows = 256;       // rows of a task
constexpr int64_t kAhead = 8;        // rows prefetched early
constexpr int64_t kMostAhead = 16;   // of their lookups, and of those of a row that has more
constexpr int kGroup = 4;            // vectors summed side by side
constexpr int64_t kSerial = 32'768;  // elements below which a team of threads costs more

template <int kCount>
struct Count {};

inline int64_t element_size(DType dtype) { return dtype == DType::kFloat32 ? 4 : 2; }

struct Source {
    const Use* use;
    int64_t grad_row;  // of this use
    const char* data;
};

// One use whose gradients are float32 and not divided.
inline bool is_plain(const Params& p) {
    return p.num_uses == 1 && p.uses->grad_dtype == DType::kFloat32 &&
           !(p.uses->offsets && p.uses->mean);
}

template <bool kPlain>
[[gnu::always_inline]] inline Source source_of(const Params& p, const Sorted& s, int64_t at) {
    int64_t grad_row = static_cast<int64_t>(s.keys[at] & ((uint64_t{1} << s.shift) - 1));
    const Use* use = p.uses;
    if (kPlain) {
        return {use, grad_row,
                reinterpret_cast<const char*>(static_cast<const float*>(use->grad) +
                                              grad_row * use->grad_stride)};
    }
    while (grad_row >= use->grad_rows) {
        grad_row -= use->grad_rows;
        ++use;
    }
    const int64_t start = grad_row * use->grad_stride * element_size(use->grad_dtype);
    return {use, grad_row, static_cast<const char*>(use->grad) + start};
}

template <bool kPlain>
[[gnu::always_inline]] inline void prefetch_gradient(const Params& p, const Sorted& s, int64_t at) {
    const Source source = source_of<kPlain>(p, s, at);
    prefetch(source.data, p.dim * (kPlain ? 4 : element_size(source.use->grad_dtype)));
}

// What a lookup's gradient is multiplied by.
template <bool kPlain>
[[gnu::always_inline]] inline float scale_of(const Source& source) {
    const Use& use = *source.use;
    if (kPlain || !use.offsets || !use.mean) {
        return 1.0f;
    }
    const int64_t* o = use.offsets + source.grad_row;
    return 1.0f / static_cast<float>(o[1] - o[0]);
}

// f(column, vectors as a constant, lanes of the last one) for a row in groups of vectors.
template <typename F>
inline __attribute__((always_inline)) void for_columns(int64_t dim, const F& f) {
    int64_t d = 0;
    for (; d + kGroup * kLanes <= dim; d += kGroup * kLanes) {
        f(d, Count<kGroup>{}, kLanes);
    }
    for (; d < dim; d += kLanes) {
        f(d, Count<1>{}, static_cast<int>(dim - d < kLanes ? dim - d : kLanes));
    }
}

// sum = gradients of the sorted lookups [begin, end), which are all of one row.
template <bool kPlain>
[[gnu::always_inline]] inline void sum_lookups(const Params& params, const Sorted& sorted,
                                               int64_t begin, int64_t end, float* sum) {
    const Params p = params;
    const Sorted s = sorted;
    for_columns(p.dim, [&]<int kCount>(int64_t d, Count<kCount>, int lanes) {
        vfloat sums[kCount] = {};
        for (int64_t at = begin; at < end; ++at) {
            if (d == 0 && at + kMostAhead < end) {
                prefetch_gradient<kPlain>(p, s, at + kMostAhead);
            }
            const Source source = source_of<kPlain>(p, s, at);
            const float scale = scale_of<kPlain>(source);
            const auto add = [&](auto* x) __attribute__((always_inline)) {
#pragma GCC unroll 4
                for (int v = 0; v < kCount; ++v) {
                    sums[v] += scale * load_lanes(x + d + v * kLanes, lanes);
                }
            };
            if (kPlain || source.use->grad_dtype == DType::kFloat32) {
                add(reinterpret_cast<const float*>(source.data));
            } else {
                add(reinterpret_cast<const bfloat16*>(source.data));
            }
        }
#pragma GCC unroll 4
        for (int v = 0; v < kCount; ++v) {
            store_lanes(sum + d + v * kLanes, sums[v], lanes);
        }
    });
}

inline float mean_square(const float* g, int64_t dim) {
    vfloat sums{};
    for_vectors(dim, [&](int64_t d, int n) {
        const vfloat x = load_lanes(g + d, n);
        sums += x * x;
    });
    return sum(sums) / static_cast<float>(dim);
}

template <typename T, Rule kRule>
[[gnu::always_inline]] inline void update(const Params& p, int64_t row, const float* __restrict g) {
    T* __restrict x = static_cast<T*>(p.table) + row * p.table_stride;
    if constexpr (kRule == Rule::kSum) {
        for_vectors(p.dim, [&](int64_t d, int n) { store_lanes(x + d, load_lanes(g + d, n), n); });
    } else if constexpr (kRule == Rule::kAdagrad) {
        const float state = p.state[row] + mean_square(g, p.dim);
        p.state[row] = state;
        const float rate = p.lr / (std::sqrt(state) + p.eps);
        for_vectors(p.dim, [&](int64_t d, int n) {
            store_lanes(x + d, load_lanes(x + d, n) - rate * load_lanes(g + d, n), n);
        });
    } else {
        float* __restrict moment = p.moment + row * p.moment_stride;
        const float state = p.beta2 * p.state[row] + (1.0f - p.beta2) * mean_square(g, p.dim);
        p.state[row] = state;
        const float denominator = std::sqrt(state) / p.sqrt_correction2 + p.eps;
        const float rate = p.lr / p.correction1 / denominator;
        const float keep = 1.0f - p.lr * p.weight_decay;
        for_vectors(p.dim, [&](int64_t d, int n) {
            const vfloat m =
                p.beta1 * load_lanes(moment + d, n) + (1.0f - p.beta1) * load_lanes(g + d, n);
            store_lanes(moment + d, m, n);
            store_lanes(x + d, keep * load_lanes(x + d, n) - rate * m, n);
        });
    }
}

template <typename T, Rule kRule>
[[gnu::always_inline]] inline void prefetch_row(const Params& p, int64_t row) {
    prefetch(static_cast<const T*>(p.table) + row * p.table_stride, p.dim * sizeof(T));
    if (kRule != Rule::kSum) {
        __builtin_prefetch(p.state + row);
    }
    if (kRule == Rule::kAdamW) {
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
    uint64_t before = ~uint64_t{0};
    for (int64_t at = 0; at < s.lookups; ++at) {
        // Without a branch, which no processor would foresee.
        const uint64_t row = s.keys[at] >> s.shift;
        begins[rows] = static_cast<uint64_t>(at);
        rows += row != before;
        before = row;
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
    memset(sum, 0, p.dim * sizeof(float));
    for (; piece < plan.num_pieces && plan.pieces[2 * piece] < end; ++piece) {
        const float* part = p.partials + piece * p.dim;
        for_vectors(p.dim, [&](int64_t d, int n) {
            store_lanes(sum + d, load_lanes(sum + d, n) + load_lanes(part + d, n), n);
        });
    }
}

// Of a plain use the gradient of a single lookup is read where it lies.
template <typename T, Rule kRule, bool kPlain>
void update_rows(const Params& params, const Sorted& sorted, const Plan& rows, int64_t from,
                 int64_t to) {
    // Copies: their fields stay in registers past the stores.
    const Params p = params;
    const Sorted s = sorted;
    const Plan plan = rows;
    const float* grad = static_cast<const float*>(p.uses->grad);
    const int64_t grad_stride = p.uses->grad_stride;
    const uint64_t grad_rows = (uint64_t{1} << s.shift) - 1;
    float* sum = static_cast<float*>(__builtin_alloca(p.dim * sizeof(float)));
    for (int64_t r = from; r < to; ++r) {
        if (r + kAhead < plan.rows) {
            const int64_t begin = plan.begins[r + kAhead], end = plan.begins[r + kAhead + 1];
            const uint64_t key = s.keys[begin];
            prefetch_row<T, kRule>(p, static_cast<int64_t>(key >> s.shift));
            if (kPlain) {
                prefetch(grad + static_cast<int64_t>(key & grad_rows) * grad_stride, 4 * p.dim);
            }
            for (int64_t at = begin + kPlain; at < end && at < begin + kMostAhead; ++at) {
                prefetch_gradient<kPlain>(p, s, at);
            }
        }
        const int64_t begin = plan.begins[r], end = plan.begins[r + 1];
        const uint64_t key = s.keys[begin];
        const float* g = sum;
        if (kPlain && end - begin == 1) {
            g = grad + static_cast<int64_t>(key & grad_rows) * grad_stride;
        } else if (end - begin > kPiece) {
            sum_pieces(params, rows, begin, end, sum);
        } else {
            sum_lookups<kPlain>(p, s, begin, end, sum);
        }
        update<T, kRule>(p, static_cast<int64_t>(key >> s.shift), g);
    }
}

template <typename T, Rule kRule>
void update_rows(const Params& p, const Sorted& s, const Plan& plan, int64_t from, int64_t to) {
    is_plain(p) ? update_rows<T, kRule, true>(p, s, plan, from, to)
                : update_rows<T, kRule, false>(p, s, plan, from, to);
}

template <typename T>
void update_rows(const Params& p, const Sorted& s, const Plan& plan, int64_t from, int64_t to) {
    switch (p.rule) {
        case Rule::kSum:
            return update_rows<T, Rule::kSum>(p, s, plan, from, to);
        case Rule::kAdagrad:
            return update_rows<T, Rule::kAdagrad>(p, s, plan, from, to);
        case Rule::kAdamW:
            return update_rows<T, Rule::kAdamW>(p, s, plan, from, to);
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
        float* sum = p.partials + piece * p.dim;
        is_plain(p) ? sum_lookups<true>(p, s, bounds[0], bounds[1], sum)
                    : sum_lookups<false>(p, s, bounds[0], bounds[1], sum);
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
