// Weights are read row by row as they lie, once for up to some tens of rows of x; depth stands in
// the vector lanes. An element is the sum of one chain per lane, added up as a tree: it does not
// depend on the number of rows. Bound by reading the weights, from about 30 rows on by
// multiply-adds.
#include <cmath>

#include "common/cpu/units.h"
#include "common/parallel.h"
#include "query_layer/query_layer.h"

namespace pylum::query_layer::PYLUM_ISA {
namespace {

constexpr int kWeightRows = 4;
constexpr int kRows = kVectorBytes == 64 ? 4 : 2;
constexpr int64_t kPanel = 64;        // rows of the weight that are one task
constexpr int64_t kNear = 24 * 1024;  // bytes of x that stay in the first-level cache
constexpr int64_t kRowChunk = 16;

// Multiply-adds of one vector of depth, the first n elements. With pairs a vector is two deep.
template <typename T>
struct Depth {
    static constexpr int kStep = kLanes;
    typedef vfloat Vector;
    static Vector load(const T* p, int n) { return load_lanes(p, n); }
    static vfloat add(vfloat sum, Vector a, Vector b) { return sum + a * b; }
};
#ifdef __AVX512BF16__
template <>
struct Depth<bfloat16> {
    static constexpr int kStep = 2 * kLanes;
    typedef __m512i Vector;
    static Vector load(const bfloat16* p, int n) {
        return n == kStep ? _mm512_loadu_si512(p) : _mm512_maskz_loadu_epi16((1u << n) - 1u, p);
    }
    static vfloat add(vfloat sum, Vector a, Vector b) {
        return (vfloat)_mm512_dpbf16_ps((__m512)sum, (__m512bh)a, (__m512bh)b);
    }
};
#endif

// Lane i = the sum of vector i's lanes: l + (l + half), and so on.
inline vfloat sums_of(vfloat (&rows)[kLanes]) {
#pragma GCC unroll 4
    for (int left = kLanes / 2; left > 0; left /= 2) {
#pragma GCC unroll 8
        for (int i = 0; i < left; ++i) {
            rows[i] =
                interleave_low(rows[i], rows[i + left]) + interleave_high(rows[i], rows[i + left]);
        }
    }
    return rows[0];
}

// y[r][n] = sum over d of x[r][d] * w[n][d] for kCount rows of x and kWeightRows of w; rows past
// the last ones repeat them.
template <typename T, int kCount>
__attribute__((noinline)) void tile(const T* x, int64_t last_x, const T* w, int64_t last_w,
                                    int64_t depth, float* y, int64_t y_row) {
    using D = Depth<T>;
    const T* a[kCount];
    const T* b[kWeightRows];
    vfloat sum[kCount][kWeightRows];
#pragma GCC unroll 4
    for (int r = 0; r < kCount; ++r) {
        a[r] = x + (r < last_x ? r : last_x) * depth;
#pragma GCC unroll 4
        for (int n = 0; n < kWeightRows; ++n) {
            b[n] = w + (n < last_w ? n : last_w) * depth;
            sum[r][n] = vfloat{};
        }
    }
    const auto step = [&](int64_t d, int lanes) __attribute__((always_inline)) {
        typename D::Vector left[kCount];
#pragma GCC unroll 4
        for (int r = 0; r < kCount; ++r) {
            left[r] = D::load(a[r] + d, lanes);
        }
#pragma GCC unroll 4
        for (int n = 0; n < kWeightRows; ++n) {
            // The next tile's rows: a tile is too short for the hardware to see where it goes.
            __builtin_prefetch(b[n] + d + kWeightRows * depth);
            const typename D::Vector right = D::load(b[n] + d, lanes);
#pragma GCC unroll 4
            for (int r = 0; r < kCount; ++r) {
                sum[r][n] = D::add(sum[r][n], left[r], right);
            }
        }
    };
    int64_t d = 0;
    for (; d + D::kStep <= depth; d += D::kStep) {
        step(d, D::kStep);
    }
    if (d < depth) {
        step(d, static_cast<int>(depth - d));
    }
    constexpr int kSums = kCount * kWeightRows;
    float out[kSums < kLanes ? kLanes : kSums];
#pragma GCC unroll 4
    for (int i = 0; i < kSums; i += kLanes) {
        vfloat group[kLanes];
#pragma GCC unroll 16
        for (int l = 0; l < kLanes; ++l) {
            group[l] = i + l < kSums ? sum[(i + l) / kWeightRows][(i + l) % kWeightRows] : vfloat{};
        }
        store(out + i, sums_of(group));
    }
    for (int r = 0; r < kCount && r <= last_x; ++r) {
        if (last_w >= kWeightRows - 1) {
            memcpy(y + r * y_row, out + r * kWeightRows, sizeof(float) * kWeightRows);
            continue;
        }
        for (int n = 0; n <= last_w; ++n) {
            y[r * y_row + n] = out[r * kWeightRows + n];
        }
    }
}

// y = x w^T; [rows, depth], [width, depth], [rows, width].
template <typename T>
void multiply(const T* x, const T* w, float* y, int64_t rows, int64_t depth, int64_t width,
              int threads) {
    const int64_t fit = kNear / (depth * static_cast<int64_t>(sizeof(T))) / kRows * kRows;
    const int64_t block = fit < kRows ? kRows : fit;
    parallel_for((width + kPanel - 1) / kPanel, threads, [&](int64_t panel) {
        const int64_t end = (panel + 1) * kPanel < width ? (panel + 1) * kPanel : width;
        for (int64_t first = 0; first < rows; first += block) {
            const int64_t stop = first + block < rows ? first + block : rows;
            for (int64_t n = panel * kPanel; n < end; n += kWeightRows) {
                int64_t r = first;
                for (; r + 1 < stop; r += kRows) {
                    tile<T, kRows>(x + r * depth, stop - r - 1, w + n * depth, end - n - 1, depth,
                                   y + r * width + n, width);
                }
                if (r < stop) {
                    tile<T, 1>(x + r * depth, 0, w + n * depth, end - n - 1, depth,
                               y + r * width + n, width);
                }
            }
        }
    });
}

template <typename F>
void for_rows(const Params& p, const F& f) {
    parallel_for((p.rows + kRowChunk - 1) / kRowChunk, p.threads, [&](int64_t chunk) {
        const int64_t end = (chunk + 1) * kRowChunk < p.rows ? (chunk + 1) * kRowChunk : p.rows;
        for (int64_t row = chunk * kRowChunk; row < end; ++row) {
            f(row);
        }
    });
}

// out = x / rms(x) * weight
template <typename T>
void norm(const Params& p, const T* x, const void* weight, T* out) {
    vfloat squares{};
    for_vectors(p.width, [&](int64_t i, int n) {
        const vfloat s = load_lanes(x + i, n);
        squares += s * s;
    });
    const float scale = 1.0f / std::sqrt(sum(squares) / static_cast<float>(p.width) + p.eps);
    for_vectors(p.width, [&](int64_t i, int n) {
        store_lanes(out + i,
                    load_lanes(x + i, n) * scale * load_lanes(static_cast<const T*>(weight) + i, n),
                    n);
    });
}

template <typename T>
void turn(const Params& p, int64_t row) {
    const int64_t half = p.head_dim / 2, heads = p.heads + 2 * p.kv_heads;
    const float* cos = p.cos + p.positions[row] * half;
    const float* sin = p.sin + p.positions[row] * half;
    for (int64_t head = 0; head < heads; ++head) {
        const float* from = p.floats + (row * heads + head) * p.head_dim;
        T* to = static_cast<T*>(p.fused) + (row * heads + head) * p.head_dim;
        if (head >= p.heads + p.kv_heads) {
            for_vectors(p.head_dim,
                        [&](int64_t i, int n) { store_lanes(to + i, load_lanes(from + i, n), n); });
            continue;
        }
        for_vectors(half, [&](int64_t i, int n) {
            const vfloat a = load_lanes(from + i, n), b = load_lanes(from + half + i, n);
            const vfloat c = load_lanes(cos + i, n), s = load_lanes(sin + i, n);
            store_lanes(to + i, a * c - b * s, n);
            store_lanes(to + half + i, b * c + a * s, n);
        });
    }
}

template <typename T>
void project_rows(const Params& p) {
    const T* x = static_cast<const T*>(p.x);
    T* h = static_cast<T*>(p.h);
    for_rows(p,
             [&](int64_t row) { norm(p, x + row * p.width, p.attention_norm, h + row * p.width); });
    multiply(h, static_cast<const T*>(p.qkv), p.floats, p.rows, p.width,
             (p.heads + 2 * p.kv_heads) * p.head_dim, p.threads);
    for_rows(p, [&](int64_t row) { turn<T>(p, row); });
}

template <typename T>
void complete_rows(const Params& p) {
    T* h = static_cast<T*>(p.h);
    T* y = static_cast<T*>(p.y);
    // y = from + floats
    const auto join = [&](const T* from, int64_t row) {
        for_vectors(p.width, [&](int64_t i, int n) {
            const int64_t at = row * p.width + i;
            store_lanes(y + at, load_lanes(from + at, n) + load_lanes(p.floats + at, n), n);
        });
    };
    multiply(static_cast<const T*>(p.attended), static_cast<const T*>(p.out), p.floats, p.rows,
             p.heads * p.head_dim, p.width, p.threads);
    for_rows(p, [&](int64_t row) {
        join(static_cast<const T*>(p.x), row);
        norm(p, y + row * p.width, p.ffn_norm, h + row * p.width);
    });
    multiply(h, static_cast<const T*>(p.gate_up), p.floats, p.rows, p.width, 2 * p.ffn, p.threads);
    for_rows(p, [&](int64_t row) {
        const float* gate = p.floats + row * 2 * p.ffn;
        for_vectors(p.ffn, [&](int64_t i, int n) {
            const vfloat g = load_lanes(gate + i, n), up = load_lanes(gate + p.ffn + i, n);
            store_lanes(h + row * p.ffn + i, g / (1.0f + exp(-g)) * up, n);
        });
    });
    multiply(h, static_cast<const T*>(p.down), p.floats, p.rows, p.ffn, p.width, p.threads);
    for_rows(p, [&](int64_t row) { join(y, row); });
}

}  // namespace

// On AVX512-BF16 only bfloat16 comes here.
void project(const Params& p) {
    if constexpr (!kNativePairs) {
        if (p.dtype == DType::kFloat32) {
            return project_rows<float>(p);
        }
    }
    project_rows<bfloat16>(p);
}

void complete(const Params& p) {
    if constexpr (!kNativePairs) {
        if (p.dtype == DType::kFloat32) {
            return complete_rows<float>(p);
        }
    }
    complete_rows<bfloat16>(p);
}

}  // namespace pylum::query_layer::PYLUM_ISA
