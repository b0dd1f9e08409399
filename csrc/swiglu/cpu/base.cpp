// One task per chunk of rows; bound by reading and writing each element once.
#include "common/cpu/rows.h"
#include "common/parallel.h"
#include "swiglu/swiglu.h"

namespace pylum::swiglu::PYLUM_ISA {
namespace {

constexpr int64_t kChunk = 64;

inline vfloat sigmoid(vfloat x) { return 1.0f / (1.0f + exp(-x)); }

template <typename T>
void forward_row(const Params& p, int64_t row) {
    const T* gate = static_cast<const T*>(p.gate_up) + row * 2 * p.width;
    const T* up = gate + p.width;
    T* out = static_cast<T*>(p.out) + row * p.width;
    for_vectors(p.width, [&](int64_t i, int n) {
        const vfloat g = load_lanes(gate + i, n);
        store_lanes(out + i, g * sigmoid(g) * load_lanes(up + i, n), n);
    });
}

template <typename T>
void backward_row(const Params& p, int64_t row) {
    const T* gate = static_cast<const T*>(p.gate_up) + row * 2 * p.width;
    const T* up = gate + p.width;
    const T* dout = static_cast<const T*>(p.dout) + row * p.width;
    T* dgate = static_cast<T*>(p.dgate_up) + row * 2 * p.width;
    T* dup = dgate + p.width;
    for_vectors(p.width, [&](int64_t i, int n) {
        const vfloat g = load_lanes(gate + i, n);
        const vfloat d = load_lanes(dout + i, n);
        const vfloat s = sigmoid(g);
        store_lanes(dup + i, d * g * s, n);
        // silu'(g) = s (1 + g (1 - s))
        const vfloat slope = s * (1.0f + g * (1.0f - s));
        store_lanes(dgate + i, d * load_lanes(up + i, n) * slope, n);
    });
}

}  // namespace

void forward(const Params& p) {
    parallel_for((p.rows + kChunk - 1) / kChunk, p.threads, [&](int64_t c) {
        const int64_t stop = (c + 1) * kChunk < p.rows ? (c + 1) * kChunk : p.rows;
        for (int64_t row = c * kChunk; row < stop; ++row) {
            p.dtype == DType::kFloat32 ? forward_row<float>(p, row) : forward_row<bfloat16>(p, row);
        }
    });
}

void backward(const Params& p) {
    parallel_for((p.rows + kChunk - 1) / kChunk, p.threads, [&](int64_t c) {
        const int64_t stop = (c + 1) * kChunk < p.rows ? (c + 1) * kChunk : p.rows;
        for (int64_t row = c * kChunk; row < stop; ++row) {
            p.dtype == DType::kFloat32 ? backward_row<float>(p, row)
                                       : backward_row<bfloat16>(p, row);
        }
    });
}

}  // namespace pylum::swiglu::PYLUM_ISA
