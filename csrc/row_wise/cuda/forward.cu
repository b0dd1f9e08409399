// After the sort one warp per kPositions sorted lookups: where a row begins there, the warp sums
// its gradients and updates it once. Reads each gradient once and each touched row once, where dim
// is at most 512; else gradients are summed twice. Bound by random rows.
#include "row_wise/cuda/sort.h"

namespace pylum::row_wise {
namespace {

// Blocks of a multiprocessor: left alone, ptxas keeps to 64 registers and spills.
constexpr int kBlocks = 2;
constexpr int kPositions = 4;
constexpr int kAhead = 4;  // gradients whose loads are under way at once
constexpr int kHeld = 4;   // parts of a row's sum that a lane holds

constexpr int kCount = 4;  // consecutive columns of a lane, whether or not they move in one access

struct Uses {
    Use at[kMostCudaUses];
};

struct Rows {
    void* table;
    int64_t table_stride, moment_stride, dim, rows;
    float *state, *moment, *partials;
    float lr, eps, beta1, beta2, weight_decay, correction1, sqrt_correction2;
    Rule rule;
    const uint64_t* keys;
    int64_t lookups;
    int shift;
};

__device__ inline int64_t row_at(const Rows& r, int64_t at) {
    return static_cast<int64_t>(r.keys[at] >> r.shift);
}

// Whether the lookup after kPiece ones from `at` on is of the same row.
__device__ inline bool goes_on(const Rows& r, int64_t at, int64_t row) {
    return at + kPiece < r.lookups && row_at(r, at + kPiece) == row;
}

// Where the sum of the piece of a long row that begins at `at` stands. Of the pieces that begin
// within one kPiece of positions at most one is its row's first and at most one another.
__device__ inline int64_t slot_of(int64_t at, bool first) { return at / kPiece * 2 + first; }

struct Source {
    const Use* use;
    int64_t at;  // element of its gradient
    float scale;
};

__device__ inline Source source_of(const Rows& r, const Uses& uses, int64_t at) {
    int64_t grad_row = static_cast<int64_t>(r.keys[at] & ((uint64_t{1} << r.shift) - 1));
    int u = 0;
    while (grad_row >= uses.at[u].grad_rows) {
        grad_row -= uses.at[u].grad_rows;
        ++u;
    }
    const Use& use = uses.at[u];
    float scale = 1.0f;
    if (use.offsets && use.mean) {
        scale = 1.0f / static_cast<float>(use.offsets[grad_row + 1] - use.offsets[grad_row]);
    }
    return {&use, grad_row * use.grad_stride, scale};
}

struct Floats {
    float at[kCount];
};

// Columns [column, column + kCount) of a row; those past dim are zeros.
template <bool kWide, typename T>
__device__ Pack<T, kCount> load_columns(const T* row, int64_t column, int64_t dim) {
    Pack<T, kCount> pack{};
    if constexpr (kWide) {
        pack = load_pack<kCount>(row + column);
    } else {
#pragma unroll
        for (int i = 0; i < kCount; ++i) {
            if (column + i < dim) {
                pack.at[i] = row[column + i];
            }
        }
    }
    return pack;
}

template <bool kWide, typename T>
__device__ void store_columns(T* row, int64_t column, int64_t dim, const Pack<T, kCount>& pack) {
    if constexpr (kWide) {
        store_pack<kCount>(row + column, pack);
    } else {
#pragma unroll
        for (int i = 0; i < kCount; ++i) {
            if (column + i < dim) {
                row[column + i] = pack.at[i];
            }
        }
    }
}

template <bool kWide>
__device__ Floats load_source(const Source& s, int64_t column, int64_t dim) {
    Floats x;
    const auto take = [&](const auto* from) {
        const auto pack = load_columns<kWide>(from + s.at, column, dim);
#pragma unroll
        for (int i = 0; i < kCount; ++i) {
            x.at[i] = s.scale * to_float(pack.at[i]);
        }
    };
    if (s.use->grad_dtype == DType::kFloat32) {
        take(static_cast<const float*>(s.use->grad));
    } else if (s.use->grad_dtype == DType::kBFloat16) {
        take(static_cast<const __nv_bfloat16*>(s.use->grad));
    } else {
        take(static_cast<const __half*>(s.use->grad));
    }
    return x;
}

// Columns [column, column + kCount) of the gradients of the lookups [begin, end) that are of `row`.
template <bool kWide>
__device__ Floats sum_lookups(const Rows& r, const Uses& uses, int64_t row, int64_t begin,
                              int64_t end, int64_t column) {
    Floats sum{};
    bool more = true;
    for (int64_t at = begin; more; at += kAhead) {
        Floats next[kAhead];
        bool here[kAhead];
#pragma unroll
        for (int a = 0; a < kAhead; ++a) {
            here[a] = at + a < end && row_at(r, at + a) == row;
            if (here[a]) {
                next[a] = load_source<kWide>(source_of(r, uses, at + a), column, r.dim);
            }
        }
#pragma unroll
        for (int a = 0; a < kAhead; ++a) {
#pragma unroll
            for (int i = 0; i < kCount; ++i) {
                sum.at[i] += here[a] ? next[a].at[i] : 0.0f;
            }
        }
        more = here[kAhead - 1];
    }
    return sum;
}

// The whole sum of a row whose lookups begin at `begin`.
template <bool kWide>
__device__ Floats sum_row(const Rows& r, const Uses& uses, int64_t row, int64_t begin, bool is_long,
                          int64_t column) {
    if (!is_long) {
        const int64_t end = min(begin + kPiece, r.lookups);
        return sum_lookups<kWide>(r, uses, row, begin, end, column);
    }
    Floats sum{};
    for (int64_t at = begin; at < r.lookups && row_at(r, at) == row; at += kPiece) {
        const auto part =
            load_columns<kWide>(r.partials + slot_of(at, at == begin) * r.dim, column, r.dim);
#pragma unroll
        for (int i = 0; i < kCount; ++i) {
            sum.at[i] += part.at[i];
        }
    }
    return sum;
}

// The same in every lane, added in a fixed order.
__device__ inline float sum_of_lanes(float x) {
#pragma unroll
    for (int bits = kWarp / 2; bits > 0; bits /= 2) {
        x += __shfl_xor_sync(~0u, x, bits);
    }
    return x;
}

struct Rate {
    float of_gradient, keep;
};

// The row's state after this step, which lane 0 writes, and what follows from it.
__device__ inline Rate update_state(const Rows& r, int64_t row, float squares) {
    if (r.rule == Rule::kSum) {
        return {};
    }
    const float mean = sum_of_lanes(squares) / static_cast<float>(r.dim);
    float state = r.state[row];
    __syncwarp();
    Rate rate{};
    if (r.rule == Rule::kAdagrad) {
        state += mean;
        rate.of_gradient = r.lr / (sqrtf(state) + r.eps);
    } else {
        state = r.beta2 * state + (1.0f - r.beta2) * mean;
        rate.of_gradient = r.lr / r.correction1 / (sqrtf(state) / r.sqrt_correction2 + r.eps);
        rate.keep = 1.0f - r.lr * r.weight_decay;
    }
    if (threadIdx.x % kWarp == 0) {
        r.state[row] = state;
    }
    return rate;
}

template <typename T, bool kWide>
__device__ void update_pack(const Rows& r, int64_t row, int64_t column, const Floats& g,
                            const Rate& rate) {
    T* to = static_cast<T*>(r.table) + row * r.table_stride;
    Pack<T, kCount> x;
    if (r.rule == Rule::kSum) {
#pragma unroll
        for (int i = 0; i < kCount; ++i) {
            x.at[i] = from_float<T>(g.at[i]);
        }
    } else if (r.rule == Rule::kAdagrad) {
        x = load_columns<kWide>(to, column, r.dim);
#pragma unroll
        for (int i = 0; i < kCount; ++i) {
            x.at[i] = from_float<T>(to_float(x.at[i]) - rate.of_gradient * g.at[i]);
        }
    } else {
        x = load_columns<kWide>(to, column, r.dim);
        float* moments = r.moment + row * r.moment_stride;
        auto moment = load_columns<kWide>(moments, column, r.dim);
#pragma unroll
        for (int i = 0; i < kCount; ++i) {
            moment.at[i] = r.beta1 * moment.at[i] + (1.0f - r.beta1) * g.at[i];
            x.at[i] =
                from_float<T>(rate.keep * to_float(x.at[i]) - rate.of_gradient * moment.at[i]);
        }
        store_columns<kWide>(moments, column, r.dim, moment);
    }
    store_columns<kWide>(to, column, r.dim, x);
}

template <typename T, bool kWide>
__device__ void update_row(const Rows& r, const Uses& uses, int64_t row, int64_t begin) {
    const int64_t first = static_cast<int64_t>(threadIdx.x % kWarp) * kCount;
    constexpr int64_t kStep = kWarp * kCount;
    const bool is_long = goes_on(r, begin, row);
    Floats held[kHeld];
    float squares = 0.0f;
    const auto add_squares = [&](const Floats& g) {
#pragma unroll
        for (int i = 0; i < kCount; ++i) {
            squares += g.at[i] * g.at[i];
        }
    };
#pragma unroll
    for (int h = 0; h < kHeld; ++h) {
        if (first + h * kStep < r.dim) {
            held[h] = sum_row<kWide>(r, uses, row, begin, is_long, first + h * kStep);
            add_squares(held[h]);
        }
    }
    for (int64_t column = first + kHeld * kStep; r.rule != Rule::kSum && column < r.dim;
         column += kStep) {
        add_squares(sum_row<kWide>(r, uses, row, begin, is_long, column));
    }
    const Rate rate = update_state(r, row, squares);
#pragma unroll
    for (int h = 0; h < kHeld; ++h) {
        if (first + h * kStep < r.dim) {
            update_pack<T, kWide>(r, row, first + h * kStep, held[h], rate);
        }
    }
    for (int64_t column = first + kHeld * kStep; column < r.dim; column += kStep) {
        const auto g = sum_row<kWide>(r, uses, row, begin, is_long, column);
        update_pack<T, kWide>(r, row, column, g, rate);
    }
}

template <typename T, bool kWide>
__global__ void __launch_bounds__(kThreads, kBlocks)
    update_kernel(const Rows r, const __grid_constant__ Uses uses) {
    const int64_t warps = static_cast<int64_t>(gridDim.x) * kWarps;
    const int64_t warp = static_cast<int64_t>(blockIdx.x) * kWarps + threadIdx.x / kWarp;
    for (int64_t at = warp * kPositions; at < r.lookups; at += warps * kPositions) {
        for (int64_t begin = at; begin < at + kPositions && begin < r.lookups; ++begin) {
            const int64_t row = row_at(r, begin);
            if (row < r.rows && (begin == 0 || row_at(r, begin - 1) != row)) {
                update_row<T, kWide>(r, uses, row, begin);
            }
        }
    }
}

// The first sorted lookup of `row`, which has one at `at`.
__device__ inline int64_t begin_of(const Rows& r, int64_t row, int64_t at) {
    int64_t below = -1;
    while (at - below > 1) {
        const int64_t middle = below + (at - below) / 2;
        (row_at(r, middle) == row ? at : below) = middle;
    }
    return at;
}

// One warp per slot of partials: the sum of the piece of a long row that it stands for, if any.
template <bool kWide>
__global__ void __launch_bounds__(kThreads, kBlocks)
    piece_kernel(const Rows r, const __grid_constant__ Uses uses, int64_t slots) {
    const int lane = static_cast<int>(threadIdx.x) % kWarp;
    const int64_t warps = static_cast<int64_t>(gridDim.x) * kWarps;
    for (int64_t slot = static_cast<int64_t>(blockIdx.x) * kWarps + threadIdx.x / kWarp;
         slot < slots; slot += warps) {
        const int64_t from = slot / 2 * kPiece, to = min(from + kPiece, r.lookups);
        int64_t begin = -1;
        if (from >= to) {
            continue;
        }
        if (slot % 2 == 0) {
            // The row of the first lookup here, where it began before.
            const int64_t start = begin_of(r, row_at(r, from), from);
            const int64_t next = start + (from - start + kPiece - 1) / kPiece * kPiece;
            if (start < from && next < to && row_at(r, next) == row_at(r, from)) {
                begin = next;
            }
        } else {
            for (int64_t at = from; at < to; at += kWarp) {
                const int64_t own = at + lane;
                const bool starts = own < to &&
                                    (own == 0 || row_at(r, own - 1) != row_at(r, own)) &&
                                    goes_on(r, own, row_at(r, own));
                const unsigned found = __ballot_sync(~0u, starts);
                begin = found ? at + __ffs(static_cast<int>(found)) - 1 : begin;
            }
        }
        if (begin < 0 || row_at(r, begin) >= r.rows) {
            continue;
        }
        const int64_t end = min(begin + kPiece, r.lookups);
        for (int64_t column = lane * kCount; column < r.dim; column += kWarp * kCount) {
            const auto sum = sum_lookups<kWide>(r, uses, row_at(r, begin), begin, end, column);
            Pack<float, kCount> pack;
#pragma unroll
            for (int i = 0; i < kCount; ++i) {
                pack.at[i] = sum.at[i];
            }
            store_columns<kWide>(r.partials + slot * r.dim, column, r.dim, pack);
        }
    }
}

template <typename T, bool kWide>
void launch_rows(const Rows& r, const Uses& uses, cudaStream_t stream) {
    const int64_t slots = r.lookups > kPiece ? cuda_pieces_bound(r.lookups) : 0;
    launch("row_wise pieces", piece_kernel<kWide>, dim3(blocks_for(slots, kWarps)), kThreads, 0,
           stream, r, uses, slots);
    launch("row_wise update", update_kernel<T, kWide>,
           dim3(blocks_for(r.lookups, kWarps * kPositions)), kThreads, 0, stream, r, uses);
}

// Whether the rows of `at` allow accesses of 4 elements.
bool allows_packs(const void* at, int64_t stride, DType dtype) {
    return aligned16(at) && stride * (dtype == DType::kFloat32 ? 4 : 2) % 16 == 0;
}

}  // namespace

void launch_forward(const Params& p, cudaStream_t stream) {
    if (p.dim == 0) {
        return;
    }
    const Sorted sorted = sort_lookups(p, stream);
    const Rows r{p.table, p.table_stride, p.moment_stride, p.dim,         p.rows,
                 p.state, p.moment,       p.partials,      p.lr,          p.eps,
                 p.beta1, p.beta2,        p.weight_decay,  p.correction1, p.sqrt_correction2,
                 p.rule,  sorted.keys,    sorted.lookups,  sorted.shift};
    Uses uses;
    bool wide = p.dim % 4 == 0 && allows_packs(p.table, p.table_stride, p.dtype) &&
                (!p.moment || allows_packs(p.moment, p.moment_stride, DType::kFloat32));
    for (int64_t u = 0; u < p.num_uses; ++u) {
        const Use& use = uses.at[u] = p.uses[u];
        wide = wide && allows_packs(use.grad, use.grad_stride, use.grad_dtype);
    }
    for_dtype(p.dtype, [&](auto type) {
        using T = decltype(type);
        wide ? launch_rows<T, true>(r, uses, stream) : launch_rows<T, false>(r, uses, stream);
    });
}

}  // namespace pylum::row_wise
