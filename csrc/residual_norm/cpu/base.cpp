// One task per chunk of rows; a row is read from memory once and its second pass hits the cache.
#include <cmath>

#include "common/cpu/rows.h"
#include "common/parallel.h"
#include "residual_norm/residual_norm.h"

namespace pylum::residual_norm::PYLUM_ISA {
namespace {

struct RowDropout {
    uint32_t low, high, threshold;
    float keep;

    RowDropout(const Dropout& d, int64_t row) : threshold(d.threshold), keep(d.keep) {
        // splitmix64 of seed and row
        uint64_t x = d.seed + static_cast<uint64_t>(row + 1) * 0x9e3779b97f4a7c15u;
        x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
        x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
        x ^= x >> 31;
        low = static_cast<uint32_t>(x);
        high = static_cast<uint32_t>(x >> 32);
    }

    vfloat operator()(vfloat value, int64_t column) const {
        vuint x;
        for (int l = 0; l < kLanes; ++l) {
            x[l] = static_cast<uint32_t>(l);
        }
        // lowbias32 of the column, keyed by both halves
        x = (x + static_cast<uint32_t>(column)) * 0x9e3779b9u + low;
        x ^= x >> 16;
        x *= 0x7feb352du;
        x ^= (x >> 15) ^ high;
        x *= 0x846ca68bu;
        x ^= x >> 16;
        return x < threshold ? vfloat{} : value * keep;
    }
};

template <typename T>
void forward_row(const Forward& p, int64_t row) {
    const T* residual = p.residual ? static_cast<const T*>(p.residual) + row * p.width : nullptr;
    const T* branch = static_cast<const T*>(p.branch) + row * p.width;
    const T* weight = static_cast<const T*>(p.weight);
    T* sum_row = static_cast<T*>(p.sum) + row * p.width;
    T* normed = static_cast<T*>(p.normed) + row * p.width;
    const RowDropout dropout(p.dropout, row);
    const bool drops = p.dropout.threshold > 0;
    vfloat squares{};
    for_vectors(p.width, [&](int64_t i, int n) {
        vfloat s = load_lanes(branch + i, n);
        if (drops) {
            s = dropout(s, i);
        }
        if (residual) {
            s += load_lanes(residual + i, n);
        }
        store_lanes(sum_row + i, s, n);
        if (sizeof(T) < sizeof(float)) {
            // The scale is that of the rounded sum, which the backward pass reads.
            s = load_lanes(sum_row + i, n);
        }
        squares += s * s;
    });
    const float scale = 1.0f / std::sqrt(sum(squares) / static_cast<float>(p.width) + p.eps);
    p.scales[row] = scale;
    for_vectors(p.width, [&](int64_t i, int n) {
        const vfloat s = load_lanes(sum_row + i, n);
        store_lanes(normed + i, s * scale * load_lanes(weight + i, n), n);
    });
}

template <typename T>
void backward_row(const Backward& p, int64_t row, float* dweight) {
    const int64_t at = row * p.width;
    const T* dsum = p.dsum ? static_cast<const T*>(p.dsum) + at : nullptr;
    const T* dnormed = p.dnormed ? static_cast<const T*>(p.dnormed) + at : nullptr;
    const T* sum_row = static_cast<const T*>(p.sum) + at;
    const T* weight = static_cast<const T*>(p.weight);
    T* dresidual = static_cast<T*>(p.dresidual) + at;
    T* dbranch = p.dbranch ? static_cast<T*>(p.dbranch) + at : nullptr;
    const RowDropout dropout(p.dropout, row);
    const float scale = p.scales[row];
    float shared = 0.0f;
    if (dnormed) {
        vfloat dots{};
        for_vectors(p.width, [&](int64_t i, int n) {
            const vfloat unit = load_lanes(sum_row + i, n) * scale;
            const vfloat d = load_lanes(dnormed + i, n);
            dots += d * load_lanes(weight + i, n) * unit;
            store_lanes(dweight + i, load_lanes(dweight + i, n) + d * unit, n);
        });
        shared = sum(dots) / static_cast<float>(p.width);
    }
    for_vectors(p.width, [&](int64_t i, int n) {
        vfloat d{};
        if (dnormed) {
            const vfloat unit = load_lanes(sum_row + i, n) * scale;
            d = (load_lanes(dnormed + i, n) * load_lanes(weight + i, n) - unit * shared) * scale;
        }
        if (dsum) {
            d += load_lanes(dsum + i, n);
        }
        store_lanes(dresidual + i, d, n);
        if (dbranch) {
            store_lanes(dbranch + i, dropout(d, i), n);
        }
    });
}

template <typename T>
void forward_rows(const Forward& p) {
    const int64_t chunks = (p.rows + kChunk - 1) / kChunk;
    parallel_for(chunks, p.threads, [&](int64_t c) {
        const int64_t stop = (c + 1) * kChunk < p.rows ? (c + 1) * kChunk : p.rows;
        for (int64_t row = c * kChunk; row < stop; ++row) {
            forward_row<T>(p, row);
        }
    });
}

template <typename T>
void backward_rows(const Backward& p) {
    const int64_t chunks = (p.rows + kChunk - 1) / kChunk;
    parallel_for(chunks, p.threads, [&](int64_t c) {
        float* dweight = p.dweight_parts + c * p.width;
        for (int64_t i = 0; i < p.width; ++i) {
            dweight[i] = 0.0f;
        }
        const int64_t stop = (c + 1) * kChunk < p.rows ? (c + 1) * kChunk : p.rows;
        for (int64_t row = c * kChunk; row < stop; ++row) {
            backward_row<T>(p, row, dweight);
        }
    });
    for (int64_t i = 0; i < p.width; ++i) {
        p.dweight[i] = 0.0f;
    }
    for (int64_t c = 0; c < chunks; ++c) {
        for (int64_t i = 0; i < p.width; ++i) {
            p.dweight[i] += p.dweight_parts[c * p.width + i];
        }
    }
}

}  // namespace

void forward(const Forward& p) {
    p.dtype == DType::kFloat32 ? forward_rows<float>(p) : forward_rows<bfloat16>(p);
}

void backward(const Backward& p) {
    p.dtype == DType::kFloat32 ? backward_rows<float>(p) : backward_rows<bfloat16>(p);
}

}  // namespace pylum::residual_norm::PYLUM_ISA
