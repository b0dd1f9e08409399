// One task per table and 128 bags. Reads every row of every bag once; bound by the latency of
// random rows, so a row is prefetched kAhead lookups early, across the bags of the task.
#include "common/cpu/vector.h"
#include "common/parallel.h"
#include "common/prefetch.h"
#include "embedding_bag/embedding_bag.h"

namespace pylum::embedding_bag::PYLUM_ISA {
namespace {

constexpr int64_t kBags = 128;       // bags of a task
constexpr int64_t kAhead = 32;       // lookups
constexpr int64_t kNear = 1 << 19;   // bytes of a table that stays in the cache
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

template <int kCount>
inline void put(const vfloat* x, float* out) {
    for (int v = 0; v < kCount; ++v) {
        store(out + v * kLanes, x[v]);
    }
}

template <int kCount>
inline void put(const vfloat* x, bfloat16* out) {
    float lanes[kCount * kLanes];
    put<kCount>(x, lanes);
    for (int d = 0; d < kCount * kLanes; ++d) {
        from_float(lanes[d], out + d);
    }
}

struct Bag {
    int64_t begin, end;
    int64_t last;   // end of the lookups worth prefetching
    float divisor;  // its size for the mean, else 1
};

// Columns [from, from + kCount * kLanes) of a bag, or the last `tail` ones with kCount 0. False
// where an index is out of range.
template <int kCount, typename T, typename Out>
inline bool columns(const Table& t, const Bag& bag, int64_t from, int tail, Out* out) {
    constexpr int kVectors = kCount ? kCount : 1;
    vfloat sums[kVectors] = {};
    for (int64_t at = bag.begin; at < bag.end; ++at) {
        if (from == 0 && at + kAhead < bag.last) {
            prefetch_row<T>(t, at + kAhead);
        }
        const int64_t row = t.indices[at * t.indices_stride];
        if (!in_range(t, row)) {
            return false;
        }
        const T* x = static_cast<const T*>(t.data) + row * t.stride + from;
        for (int v = 0; v < kVectors; ++v) {
            sums[v] += kCount ? load(x + v * kLanes) : load_first(x, tail);
        }
    }
    for (int v = 0; v < kVectors; ++v) {
        sums[v] /= broadcast(bag.divisor);
    }
    if (kCount) {
        put<kVectors>(sums, out + from);
    } else {
        Out lanes[kLanes];
        put<kVectors>(sums, lanes);
        memcpy(out + from, lanes, tail * sizeof(Out));
    }
    return true;
}

template <typename T, typename Out>
bool sum_bag(const Table& t, const Bag& bag, Out* out) {
    constexpr int kMost = 4;
    int64_t from = 0;
    for (; from + kMost * kLanes <= t.dim; from += kMost * kLanes) {
        if (!columns<kMost, T>(t, bag, from, 0, out)) {
            return false;
        }
    }
    for (; from + kLanes <= t.dim; from += kLanes) {
        if (!columns<1, T>(t, bag, from, 0, out)) {
            return false;
        }
    }
    // Also where dim is 0, so that the indices are looked at.
    return (from == t.dim && from) ||
           columns<0, T>(t, bag, from, static_cast<int>(t.dim - from), out);
}

template <typename Out>
void run(const Params& p) {
    int64_t elements = 0;
    for (int64_t t = 0; t < p.num_tables; ++t) {
        elements += p.tables[t].offsets[p.batch] * p.tables[t].dim;
    }
    const int64_t blocks = (p.batch + kBags - 1) / kBags;
    const int threads = elements < kSerial ? 1 : p.threads;
    parallel_for(p.num_tables * blocks, threads, [&](int64_t task) {
        const Table& t = p.tables[task / blocks];
        const int64_t size = t.rows * t.stride * (t.dtype == DType::kFloat32 ? 4 : 2);
        const bool near = size <= kNear;
        const int64_t begin = task % blocks * kBags;
        const int64_t end = begin + kBags < p.batch ? begin + kBags : p.batch;
        for (int64_t b = begin; b < end; ++b) {
            Out* out = static_cast<Out*>(p.out) + b * p.width + t.column;
            const int64_t length = t.offsets[b + 1] - t.offsets[b];
            const Bag bag{.begin = t.offsets[b],
                          .end = t.offsets[b + 1],
                          .last = near ? t.offsets[b] : t.offsets[end],
                          .divisor = p.mean && length ? static_cast<float>(length) : 1.0f};
            const bool good = t.dtype == DType::kFloat32 ? sum_bag<float>(t, bag, out)
                                                         : sum_bag<bfloat16>(t, bag, out);
            if (!good) {
                __atomic_store_n(p.good, false, __ATOMIC_RELAXED);
            }
        }
    });
}

}  // namespace

void forward(const Params& p) { p.out_dtype == DType::kFloat32 ? run<float>(p) : run<bfloat16>(p); }

}  // namespace pylum::embedding_bag::PYLUM_ISA
