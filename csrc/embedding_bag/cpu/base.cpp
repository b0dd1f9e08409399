// One task per table and 32 bags. Reads every row of every bag once; bound by the latency of random
// rows, so a row is prefetched kAhead lookups early, across the bags of the task.
#include "common/bfloat16.h"
#include "common/parallel.h"
#include "common/prefetch.h"
#include "embedding_bag/embedding_bag.h"

namespace pylum::embedding_bag::PYLUM_ISA {
namespace {

constexpr int64_t kBags = 32;        // bags of a task
constexpr int64_t kAhead = 16;       // lookups
constexpr int64_t kColumns = 64;     // floats held while the rows of a bag stream by
constexpr int64_t kSerial = 32'768;  // elements read below which a team of threads costs more

inline bool in_range(const Table& t, int64_t row) {
    return static_cast<uint64_t>(row) < static_cast<uint64_t>(t.rows);
}

template <typename T>
[[gnu::always_inline]] inline void prefetch_row(const Table& t, int64_t at) {
    const int64_t row = t.indices[at * t.indices_stride];
    if (in_range(t, row)) {
        prefetch(static_cast<const T*>(t.data) + row * t.stride, t.dim * sizeof(T));
    }
}

template <typename T>
inline void add(const T* __restrict x, int64_t n, float* __restrict sums) {
    if (n == kColumns) {
        for (int64_t d = 0; d < kColumns; ++d) {
            sums[d] += to_float(x[d]);
        }
    } else {
        for (int64_t d = 0; d < n; ++d) {
            sums[d] += to_float(x[d]);
        }
    }
}

// False where an index of the bag is out of range.
template <typename T, typename Out>
bool bag(const Table& t, bool mean, int64_t begin, int64_t end, int64_t last, Out* out) {
    const float divisor = mean && end > begin ? static_cast<float>(end - begin) : 1.0f;
    for (int64_t from = 0; from == 0 || from < t.dim; from += kColumns) {
        const int64_t left = t.dim - from;
        const int64_t count = left < kColumns ? left : kColumns;
        float sums[kColumns] = {};
        for (int64_t at = begin; at < end; ++at) {
            if (from == 0 && at + kAhead < last) {
                prefetch_row<T>(t, at + kAhead);
            }
            const int64_t row = t.indices[at * t.indices_stride];
            if (!in_range(t, row)) {
                return false;
            }
            add(static_cast<const T*>(t.data) + row * t.stride + from, count, sums);
        }
        for (int64_t d = 0; d < count; ++d) {
            from_float(sums[d] / divisor, out + from + d);
        }
    }
    return true;
}

template <typename Out>
bool run(const Params& p) {
    bool bad = false;
    int64_t elements = 0;
    for (int64_t t = 0; t < p.num_tables; ++t) {
        elements += p.tables[t].offsets[p.batch] * p.tables[t].dim;
    }
    const int64_t blocks = (p.batch + kBags - 1) / kBags;
    const int threads = elements < kSerial ? 1 : p.threads;
    parallel_for(p.num_tables * blocks, threads, [&](int64_t task) {
        const Table& t = p.tables[task / blocks];
        const int64_t begin = task % blocks * kBags;
        const int64_t end = begin + kBags < p.batch ? begin + kBags : p.batch;
        for (int64_t b = begin; b < end; ++b) {
            Out* out = static_cast<Out*>(p.out) + b * p.width + t.column;
            const int64_t from = t.offsets[b], to = t.offsets[b + 1], last = t.offsets[end];
            const bool good = t.dtype == DType::kFloat32
                                  ? bag<float>(t, p.mean, from, to, last, out)
                                  : bag<bfloat16>(t, p.mean, from, to, last, out);
            if (!good) {
                __atomic_store_n(&bad, true, __ATOMIC_RELAXED);
            }
        }
    });
    return !bad;
}

}  // namespace

bool forward(const Params& p) {
    return p.out_dtype == DType::kFloat32 ? run<float>(p) : run<bfloat16>(p);
}

}  // namespace pylum::embedding_bag::PYLUM_ISA
