// One task per sequence: every element is read once and written once; bound by memory.
#include "append_pages/append_pages.h"
#include "common/bfloat16.h"
#include "common/parallel.h"
#include "common/sequence.h"

namespace pylum::append_pages::PYLUM_ISA {
namespace {

// Where element d of a slot stands in its page: the order of common/cpu/key_blocks.h.
inline int64_t key_place(float, int64_t, int64_t d, int64_t slot) { return d * kBlockKeys + slot; }
inline int64_t key_place(bfloat16, int64_t dim, int64_t d, int64_t slot) {
    return dim % 2 == 1 && d == dim - 1 ? d * kBlockKeys + slot
                                        : (d / 2 * kBlockKeys + slot) * 2 + d % 2;
}
inline int64_t value_place(float, int64_t dim, int64_t d, int64_t slot) { return slot * dim + d; }
inline int64_t value_place(bfloat16, int64_t dim, int64_t d, int64_t slot) {
    return (slot / 2 * dim + d) * 2 + slot % 2;
}

// Element d of the first half and of the second half make a pair, as in Llama.
template <typename T, typename Place>
void rotate(const T* x, const float* cos, const float* sin, int64_t half, const Place& place) {
    for (int64_t d = 0; d < half; ++d) {
        const float a = to_float(x[d]), b = to_float(x[half + d]);
        from_float(a * cos[d] - b * sin[d], place(d));
        from_float(b * cos[d] + a * sin[d], place(half + d));
    }
}

// Heads before tokens: the lines of one head's page fill while they are in the cache.
template <typename T>
void append(const Params& p, int64_t b) {
    const int64_t rows = p.offsets[b + 1] - p.offsets[b];
    for (int64_t head = 0; head < p.kv_heads; ++head) {
        for (int64_t i = 0; i < rows; ++i) {
            const int64_t row = p.offsets[b] + i;
            const int64_t token = p.starts[b] + i, slot = token % kBlockKeys;
            const int64_t page = p.table[b * p.table_row + token / kBlockKeys];
            const int64_t angle = p.positions ? p.positions[row] : token;
            const T* k = static_cast<const T*>(p.k) + row * p.k_row + head * p.k_head;
            const T* v = static_cast<const T*>(p.v) + row * p.v_row + head * p.v_head;
            const int64_t block = (page * p.kv_heads + head) * kBlockKeys;
            T* k_out = static_cast<T*>(p.k_pages) + block * p.head_dim;
            T* v_out = static_cast<T*>(p.v_pages) + block * p.value_dim;
            const auto place = [&](int64_t d) {
                return k_out + key_place(T{}, p.head_dim, d, slot);
            };
            if (p.cos) {
                rotate(k, p.cos + angle * p.cos_row, p.sin + angle * p.sin_row, p.head_dim / 2,
                       place);
            } else {
                for (int64_t d = 0; d < p.head_dim; ++d) {
                    *place(d) = k[d];
                }
            }
            for (int64_t d = 0; d < p.value_dim; ++d) {
                v_out[value_place(T{}, p.value_dim, d, slot)] = v[d];
            }
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
