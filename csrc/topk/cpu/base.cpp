// One task per query: scores stream through a heap of the k best. Reads the items once per query.
#include <cmath>
#include <limits>

#include "common/bfloat16.h"
#include "common/parallel.h"
#include "topk/topk.h"

namespace pylum::topk::PYLUM_ISA {
namespace {

struct Heap {
    float* scores;
    int64_t* rows;
    int64_t k, size = 0;

    // True where (a, i) comes after (b, j) in the result.
    static bool worse(float a, int64_t i, float b, int64_t j) { return a < b || (a == b && i > j); }
    void swap(int64_t a, int64_t b) {
        const float s = scores[a];
        const int64_t r = rows[a];
        scores[a] = scores[b], rows[a] = rows[b];
        scores[b] = s, rows[b] = r;
    }
    void sift_down(int64_t at, int64_t n) {
        for (;;) {
            int64_t worst = at;
            for (int64_t child = 2 * at + 1; child <= 2 * at + 2 && child < n; ++child) {
                if (worse(scores[child], rows[child], scores[worst], rows[worst])) {
                    worst = child;
                }
            }
            if (worst == at) {
                return;
            }
            swap(at, worst);
            at = worst;
        }
    }
    void push(float score, int64_t row) {
        if (size < k) {
            int64_t at = size++;
            scores[at] = score, rows[at] = row;
            while (at > 0 &&
                   worse(scores[at], rows[at], scores[(at - 1) / 2], rows[(at - 1) / 2])) {
                swap(at, (at - 1) / 2);
                at = (at - 1) / 2;
            }
        } else if (worse(scores[0], rows[0], score, row)) {
            scores[0] = score, rows[0] = row;
            sift_down(0, k);
        }
    }
    void sort_and_pad() {
        for (int64_t n = size; n > 1; --n) {
            swap(0, n - 1);
            sift_down(0, n - 1);
        }
        for (int64_t i = size; i < k; ++i) {
            scores[i] = -std::numeric_limits<float>::infinity(), rows[i] = -1;
        }
    }
};

template <typename T>
float dot(const T* a, const T* b, int64_t dim) {
    constexpr int kLanes = 16;
    float sums[kLanes] = {};
    int64_t d = 0;
    for (; d + kLanes <= dim; d += kLanes) {
        for (int l = 0; l < kLanes; ++l) {
            sums[l] += to_float(a[d + l]) * to_float(b[d + l]);
        }
    }
    for (int l = 0; d < dim; ++d, ++l) {
        sums[l] += to_float(a[d]) * to_float(b[d]);
    }
    for (int width = kLanes / 2; width > 0; width /= 2) {
        for (int l = 0; l < width; ++l) {
            sums[l] += sums[l + width];
        }
    }
    return sums[0];
}

template <typename T>
void query(const Params& p, int64_t q) {
    Heap heap{p.scores + q * p.k, p.indices + q * p.k, p.k};
    const T* x = static_cast<const T*>(p.queries) + q * p.queries_stride;
    const T* items = static_cast<const T*>(p.items);
    const int64_t* excluded = p.exclude ? p.exclude + p.exclude_offsets[q] : nullptr;
    const int64_t num_excluded = p.exclude ? p.exclude_offsets[q + 1] - p.exclude_offsets[q] : 0;
    const auto consider = [&](int64_t row) {
        const float score = dot(x, items + row * p.items_stride, p.dim);
        if (std::isnan(score)) {
            return;
        }
        if (heap.size == p.k && !Heap::worse(heap.scores[0], heap.rows[0], score, row)) {
            return;
        }
        for (int64_t e = 0; e < num_excluded; ++e) {
            if (excluded[e] == row) {
                return;
            }
        }
        heap.push(score, row);
    };
    if (p.candidates) {
        for (int64_t c = p.candidates_offsets[q]; c < p.candidates_offsets[q + 1]; ++c) {
            consider(p.candidates[c]);
        }
    } else {
        for (int64_t row = 0; row < p.num_items; ++row) {
            consider(row);
        }
    }
    heap.sort_and_pad();
}

}  // namespace

void forward(const Params& p) {
    if (p.k == 0) {
        return;
    }
    parallel_for(p.num_queries, p.threads, [&](int64_t q) {
        p.dtype == DType::kFloat32 ? query<float>(p, q) : query<bfloat16>(p, q);
    });
}

}  // namespace pylum::topk::PYLUM_ISA
