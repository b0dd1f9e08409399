// One task per 512 tokens. Reads each row and writes each output element once; bound by the latency
// of random rows, so the rows of a token are prefetched kAhead tokens early.
#include "common/bfloat16.h"
#include "common/parallel.h"
#include "common/prefetch.h"
#include "embedding_sequence/embedding_sequence.h"

namespace pylum::embedding_sequence::PYLUM_ISA {
namespace {

constexpr int64_t kBlock = 512;      // tokens of a task
constexpr int64_t kAhead = 32;       // tokens
constexpr int64_t kColumns = 64;     // floats held between load and store
constexpr int64_t kSerial = 32'768;  // elements below which a team of threads costs more

inline int64_t row_of(const Table& t, int64_t n) { return t.indices[n * t.indices_stride]; }

inline bool in_range(const Table& t, int64_t row) {
    return static_cast<uint64_t>(row) < static_cast<uint64_t>(t.rows);
}

inline int64_t element_size(DType dtype) { return dtype == DType::kFloat32 ? 4 : 2; }

inline const char* row_data(const Table& t, int64_t row) {
    return static_cast<const char*>(t.data) + row * t.stride * element_size(t.dtype);
}

[[gnu::always_inline]] inline void prefetch_row(const Table& t, int64_t n) {
    const int64_t row = row_of(t, n);
    if (in_range(t, row)) {
        prefetch(row_data(t, row), t.dim * element_size(t.dtype));
    }
}

template <bool kAdd, typename T>
inline void take(const T* __restrict x, int64_t n, float* __restrict sums) {
    const auto one = [&](int64_t d) { sums[d] = to_float(x[d]) + (kAdd ? sums[d] : 0.0f); };
    if (n == kColumns) {
        for (int64_t d = 0; d < kColumns; ++d) {
            one(d);
        }
    } else {
        for (int64_t d = 0; d < n; ++d) {
            one(d);
        }
    }
}

template <bool kAdd>
inline void take(const Table& t, int64_t row, int64_t from, int64_t n, float* sums) {
    const char* data = row_data(t, row);
    if (t.dtype == DType::kFloat32) {
        take<kAdd>(reinterpret_cast<const float*>(data) + from, n, sums);
    } else {
        take<kAdd>(reinterpret_cast<const bfloat16*>(data) + from, n, sums);
    }
}

template <typename T>
inline void put(const float* __restrict sums, int64_t n, T* __restrict out) {
    if (n == kColumns) {
        for (int64_t d = 0; d < kColumns; ++d) {
            from_float(sums[d], out + d);
        }
    } else {
        for (int64_t d = 0; d < n; ++d) {
            from_float(sums[d], out + d);
        }
    }
}

template <typename T>
inline void copy_row(const T* x, int64_t dim, T* out) {
    constexpr int64_t kLine = 64 / sizeof(T);
    int64_t d = 0;
    for (; d + kLine <= dim; d += kLine) {
        memcpy(out + d, x + d, 64);
    }
    if (d < dim) {
        memcpy(out + d, x + d, (dim - d) * sizeof(T));
    }
}

// Tokens [begin, end) of one table of the output's dtype. False where an index is out of range.
template <typename T>
bool copy_rows(const Table& table, int64_t begin, int64_t end, T* out, int64_t width) {
    const Table t = table;
    bool good = true;
    for (int64_t n = begin; n < end; ++n) {
        if (n + kAhead < end) {
            prefetch_row(t, n + kAhead);
        }
        const int64_t row = row_of(t, n);
        if (in_range(t, row)) {
            copy_row(static_cast<const T*>(t.data) + row * t.stride, t.dim,
                     out + n * width + t.column);
        } else {
            good = false;
        }
    }
    return good;
}

// Tokens [begin, end) of `members` tables that are summed. False where an index is out of range.
template <typename T>
bool sum_rows(const Params& p, const Table* tables, int64_t members, int64_t begin, int64_t end) {
    bool good = true;
    for (int64_t n = begin; n < end; ++n) {
        bool here = !p.position || in_range(*p.position, row_of(*p.position, n));
        for (int64_t m = 0; m < members; ++m) {
            here &= in_range(tables[m], row_of(tables[m], n));
            if (n + kAhead < end) {
                prefetch_row(tables[m], n + kAhead);
            }
        }
        if (!here) {
            good = false;
            continue;
        }
        for (int64_t from = 0; from < tables->dim; from += kColumns) {
            const int64_t left = tables->dim - from;
            const int64_t count = left < kColumns ? left : kColumns;
            float sums[kColumns];
            take<false>(tables[0], row_of(tables[0], n), from, count, sums);
            for (int64_t m = 1; m < members; ++m) {
                take<true>(tables[m], row_of(tables[m], n), from, count, sums);
            }
            const int64_t column = tables->column + from;
            if (p.position) {
                take<true>(*p.position, row_of(*p.position, n), column, count, sums);
            }
            put(sums, count, static_cast<T*>(p.out) + n * p.width + column);
        }
    }
    return good;
}

template <typename T>
void run(const Params& p) {
    const int64_t groups = p.sum ? 1 : p.num_tables;
    const int64_t members = p.sum ? p.num_tables : 1;
    const int threads = p.total * p.width < kSerial ? 1 : p.threads;
    parallel_for((p.total + kBlock - 1) / kBlock, threads, [&](int64_t block) {
        const int64_t begin = block * kBlock;
        const int64_t end = begin + kBlock < p.total ? begin + kBlock : p.total;
        for (int64_t g = 0; g < groups; ++g) {
            const Table* tables = p.tables + g * members;
            const bool copy = members == 1 && !p.position && tables->dtype == p.out_dtype;
            if (!(copy ? copy_rows(*tables, begin, end, static_cast<T*>(p.out), p.width)
                       : sum_rows<T>(p, tables, members, begin, end))) {
                __atomic_store_n(p.good, false, __ATOMIC_RELAXED);
            }
        }
    });
}

}  // namespace

void forward(const Params& p) { p.out_dtype == DType::kFloat32 ? run<float>(p) : run<bfloat16>(p); }

}  // namespace pylum::embedding_sequence::PYLUM_ISA
