// One task per sequence: every element is read once and written once; bound by memory.
#include "append_pages/append_pages.h"
#include "common/bfloat16.h"
#include "common/parallel.h"
#include "common/sequence.h"

namespace pylum::append_pages::PYLUM_ISA {
namespace {

// Element d of the first half and of the second half make a pair, as in Llama.
template <typename T>
void rotate(const T* x, const float* cos, const float* sin, int64_t half, T* out) {
    for (int64_t d = 0; d < half; ++d) {
        const float a = to_float(x[d]), b = to_float(x[half + d]);
        from_float(a * cos[d] - b * sin[d], out + d);
        from_float(b * cos[d] + a * sin[d], out + half + d);
    }
}

template <typename T>
void append(const Params& p, int64_t b) {
    const int64_t rows = p.offsets[b + 1] - p.offsets[b];
    for (int64_t i = 0; i < rows; ++i) {
        const int64_t row = p.offsets[b] + i;
        const int64_t token = p.starts[b] + i;
        const int64_t page = p.table[b * p.table_row + token / kBlockKeys];
        const int64_t angle = p.positions ? p.positions[row] : token;
        for (int64_t head = 0; head < p.kv_heads; ++head) {
            const int64_t slot = (page * p.kv_heads + head) * kBlockKeys + token % kBlockKeys;
            const T* k = static_cast<const T*>(p.k) + row * p.k_row + head * p.k_head;
            const T* v = static_cast<const T*>(p.v) + row * p.v_row + head * p.v_head;
            T* k_out = static_cast<T*>(p.k_pages) + slot * p.head_dim;
            if (p.cos) {
                rotate(k, p.cos + angle * p.cos_row, p.sin + angle * p.sin_row, p.head_dim / 2,
                       k_out);
            } else {
                memcpy(k_out, k, sizeof(T) * p.head_dim);
            }
            memcpy(static_cast<T*>(p.v_pages) + slot * p.value_dim, v, sizeof(T) * p.value_dim);
        }
    }
}

}  // namespace

void forward(const Params& p) {
    parallel_for(p.batch, p.threads, [&](int64_t b) {
        p.dtype == DType::kFloat32 ? append<float>(p, b) : append<bfloat16>(p, b);
    });
}

}  // namespace pylum::append_pages::PYLUM_ISA
