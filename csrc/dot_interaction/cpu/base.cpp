// One task per chunk of rows. Forward: lanes are the columns of the triangle, over a transposed
// tile of them; backward: lanes are elements of a vector. Bound by arithmetic, count^2 * dim a row
// forward and twice that backward, from vectors that stay in the first cache.
#include "common/cpu/rows.h"
#include "common/parallel.h"
#include "dot_interaction/dot_interaction.h"

namespace pylum::dot_interaction::PYLUM_ISA {
namespace {

constexpr int64_t kChunk = 16;

inline float scalar(const float* p) { return *p; }
inline float scalar(const bfloat16* p) { return load_lanes(p, 1)[0]; }

template <typename T>
void forward_row(const Params& p, int64_t row) {
    const T* x = static_cast<const T*>(p.vectors) + row * p.count * p.dim;
    T* out = static_cast<T*>(p.out) + row * (p.count * (p.count - 1) / 2);
    alignas(64) float columns[kMaxDim * kLanes];  // [dim, lanes]
    alignas(64) float line[kMaxDim];
    for (int64_t first = 0; first < p.count - 1; first += kLanes) {
        const int64_t left = p.count - 1 - first;
        const int n = left < kLanes ? static_cast<int>(left) : kLanes;
        for (int64_t d = 0; d < p.dim; ++d) {
            for (int lane = 0; lane < kLanes; ++lane) {
                columns[d * kLanes + lane] = lane < n ? scalar(x + (first + lane) * p.dim + d) : 0;
            }
        }
        for (int64_t i = first + 1; i < p.count; ++i) {
            for_vectors(p.dim, [&](int64_t d, int lanes) {
                store_lanes(line + d, load_lanes(x + i * p.dim + d, lanes), lanes);
            });
            vfloat even = broadcast(0.0f), odd = broadcast(0.0f);
            int64_t d = 0;
            for (; d + 2 <= p.dim; d += 2) {
                even += line[d] * load(columns + d * kLanes);
                odd += line[d + 1] * load(columns + (d + 1) * kLanes);
            }
            if (d < p.dim) {
                even += line[d] * load(columns + d * kLanes);
            }
            const int64_t below = i - first;
            store_lanes(out + i * (i - 1) / 2 + first, even + odd,
                        below < n ? static_cast<int>(below) : n);
        }
    }
}

template <typename T>
void backward_row(const Params& p, int64_t row) {
    const T* x = static_cast<const T*>(p.vectors) + row * p.count * p.dim;
    const T* dout = static_cast<const T*>(p.dout) + row * (p.count * (p.count - 1) / 2);
    T* dx = static_cast<T*>(p.dvectors) + row * p.count * p.dim;
    for (int64_t i = 0; i < p.count; ++i) {
        for_vectors(p.dim, [&](int64_t d, int lanes) {
            vfloat sum = broadcast(0.0f);
            for (int64_t j = 0; j < i; ++j) {
                sum += scalar(dout + i * (i - 1) / 2 + j) * load_lanes(x + j * p.dim + d, lanes);
            }
            for (int64_t j = i + 1; j < p.count; ++j) {
                sum += scalar(dout + j * (j - 1) / 2 + i) * load_lanes(x + j * p.dim + d, lanes);
            }
            store_lanes(dx + i * p.dim + d, sum, lanes);
        });
    }
}

template <typename F>
void for_rows(const Params& p, const F& f) {
    parallel_for((p.batch + kChunk - 1) / kChunk, p.threads, [&](int64_t c) {
        const int64_t stop = (c + 1) * kChunk < p.batch ? (c + 1) * kChunk : p.batch;
        for (int64_t row = c * kChunk; row < stop; ++row) {
            f(row);
        }
    });
}

}  // namespace

void forward(const Params& p) {
    for_rows(p, [&](int64_t row) {
        p.dtype == DType::kFloat32 ? forward_row<float>(p, row) : forward_row<bfloat16>(p, row);
    });
}

void backward(const Params& p) {
    for_rows(p, [&](int64_t row) {
        p.dtype == DType::kFloat32 ? backward_row<float>(p, row) : backward_row<bfloat16>(p, row);
    });
}

}  // namespace pylum::dot_interaction::PYLUM_ISA
