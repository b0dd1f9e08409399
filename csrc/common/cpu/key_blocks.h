// Blocks of 64 keys and values in tile order, as pages hold them and products of units read them.
//
// float32: keys [head_dim][64], values [64][value_dim]. bfloat16: keys [head_dim / 2][64][2], of an
// odd head_dim the last element of all keys at the end, [64]; values [32][value_dim][2].
#pragma once

#include "common/cpu/attention_strip.h"
#include "common/cpu/units.h"
#ifdef PYLUM_TILES
#include "common/cpu/unit_tiles.h"
#endif

namespace pylum {
namespace {

constexpr int kBlockPairs = kBlockKeys / 2;

// Element d of `kLanes` keys from `key` on.
inline vfloat key_lanes(const float* page, int64_t, int64_t d, int key) {
    return load(page + d * kBlockKeys + key);
}
inline vfloat key_lanes(const bfloat16* page, int64_t dim, int64_t d, int key) {
    if (d == dim - 1 && dim % 2 == 1) {
        return load(page + d * kBlockKeys + key);
    }
    const vfloat pairs = load(reinterpret_cast<const float*>(page + d / 2 * 2 * kBlockKeys) + key);
    return d % 2 == 0 ? first_of_pair(pairs) : second_of_pair(pairs);
}

// The first `count` keys of a page as rows.
template <typename T>
inline Rows key_rows(const T* page, int count, int64_t dim, float* buffer) {
    for (int key = 0; key < count; key += kLanes) {
        for (int64_t d = 0; d < dim; d += kLanes) {
            const int left = static_cast<int>(dim - d < kLanes ? dim - d : kLanes);
            vfloat tile[kLanes];
            for (int i = 0; i < kLanes; ++i) {
                tile[i] = i < left ? key_lanes(page, dim, d + i, key) : vfloat{};
            }
            transpose(tile);
            for (int i = 0; i < kLanes && key + i < count; ++i) {
                store_lanes(buffer + (key + i) * dim + d, tile[i], left);
            }
        }
    }
    return {buffer, dim};
}

// The first `count` values of a page as rows.
inline Rows value_rows(const float* page, int, int64_t dim, float*) { return {page, dim}; }
inline Rows value_rows(const bfloat16* page, int count, int64_t dim, float* buffer) {
    const float* pairs = reinterpret_cast<const float*>(page);
    for (int i = 0; i < count; i += 2) {
        for_vectors(dim, [&](int64_t d, int n) {
            const vfloat both = load_lanes(pairs + i / 2 * dim + d, n);
            store_lanes(buffer + i * dim + d, first_of_pair(both), n);
            store_lanes(buffer + (i + 1) * dim + d, second_of_pair(both), n);
        });
    }
    return {buffer, dim};
}

// Rows of keys into tile order, kLead keys wide; memory past `count` keys is not read.
template <int kLead>
inline void pack_keys(const float* rows, int64_t stride, int count, int64_t dim, float* out) {
    for (int key = 0; key < count; key += kLanes) {
        for (int64_t d = 0; d < dim; d += kLanes) {
            const int left = static_cast<int>(dim - d < kLanes ? dim - d : kLanes);
            vfloat tile[kLanes];
            for (int i = 0; i < kLanes; ++i) {
                const float* row = rows + (key + i) * stride + d;
                tile[i] = key + i < count ? load_lanes(row, left) : vfloat{};
            }
            transpose(tile);
            for (int i = 0; i < left; ++i) {
                store(out + (d + i) * kLead + key, tile[i]);
            }
        }
    }
}
// The last element of an odd dim is paired with zero.
template <int kLead>
inline void pack_keys(const bfloat16* rows, int64_t stride, int count, int64_t dim, uint32_t* out) {
    float* units = reinterpret_cast<float*>(out);
    for (int key = 0; key < count; key += kLanes) {
        for (int64_t u = 0; u < dim / 2; u += kLanes) {
            const int left = static_cast<int>(dim / 2 - u < kLanes ? dim / 2 - u : kLanes);
            vfloat tile[kLanes];
            for (int i = 0; i < kLanes; ++i) {
                const bfloat16* row = rows + (key + i) * stride + 2 * u;
                tile[i] = key + i < count ? load_lanes(reinterpret_cast<const float*>(row), left)
                                          : vfloat{};
            }
            transpose(tile);
            for (int i = 0; i < left; ++i) {
                store(units + (u + i) * kLead + key, tile[i]);
            }
        }
        for (int i = key; dim % 2 == 1 && i < key + kLanes && i < count; ++i) {
            out[dim / 2 * kLead + i] = rows[i * stride + dim - 1].bits;
        }
    }
}

// Two rows of values in pairs; no second row: zeros.
inline void pack_pair(const bfloat16* first, const bfloat16* second, int64_t dim, uint32_t* out) {
    for (int64_t d = 0; d < dim; ++d) {
        out[d] = first[d].bits | (second ? static_cast<uint32_t>(second[d].bits) << 16 : 0u);
    }
}

// Packed rows of values in pairs.
inline void pack_values(const bfloat16* rows, int64_t stride, int count, int64_t dim,
                        uint32_t* out) {
    for (int i = 0; i < count; i += 2) {
        const bfloat16* row = rows + i * stride;
        pack_pair(row, i + 1 < count ? row + stride : nullptr, dim, out + i / 2 * dim);
    }
}

// One head of one sequence's history: its blocks as units, in place where they lie so already.
// A buffer serves one block at a time.
template <typename T>
struct KeyBlocks {
    using Unit = typename Units<T>::Unit;
    Source<T> k, v;
    int64_t head_dim, value_dim;
    alignas(64) Unit k_buffer[kBlockKeys * (kMaxDim + 2) / Units<T>::kDepth];
    alignas(64) Unit v_buffer[kBlockKeys * kMaxDim / Units<T>::kDepth];

    static int64_t units_of(int64_t n) {
        constexpr int64_t kStep = Units<T>::kDepth * kUnitStep;
        return (n + kStep - 1) / kStep * kUnitStep;
    }
    int64_t key_depth() const { return units_of(head_dim); }
    // Of `count` values; a tile reads whole vectors of a row.
    int64_t value_depth(int count) const { return units_of(count); }
    bool whole_vectors() const { return kUnitStep == 1 || value_dim % kLanes == 0; }

    // The block of keys, or of values, at `first` where it is read in place, else null.
    const Unit* keys_at(int64_t first) const {
        return k.pages ? reinterpret_cast<const Unit*>(k.block(first)) : nullptr;
    }
    const Unit* values_at(int64_t first) const {
        return v.pages ? reinterpret_cast<const Unit*>(v.block(first)) : nullptr;
    }

    // [key_depth][64]; what stands past the first `count` keys is of no meaning.
    const Unit* keys(int64_t first, int count) {
        const T* block = k.block(first);
        const int64_t used = (head_dim + Units<T>::kDepth - 1) / Units<T>::kDepth;
        memset(k_buffer + used * kBlockKeys, 0, sizeof(Unit) * (key_depth() - used) * kBlockKeys);
        if (!k.pages) {
            pack_keys<kBlockKeys>(block, k.stride, count, head_dim, k_buffer);
            return k_buffer;
        }
        if (Units<T>::kDepth == 2 && (head_dim % 2 == 1 || used < key_depth())) {
            memcpy(k_buffer, block, sizeof(T) * (head_dim / 2 * 2) * kBlockKeys);
            for (int i = 0; head_dim % 2 == 1 && i < kBlockKeys; ++i) {
                uint16_t bits;
                memcpy(&bits, block + (head_dim - 1) * kBlockKeys + i, 2);
                k_buffer[head_dim / 2 * kBlockKeys + i] = static_cast<Unit>(bits);
            }
            return k_buffer;
        }
        return reinterpret_cast<const Unit*>(block);
    }

    // [value_depth(count)][value_dim], their stride; zero past `count`.
    const Unit* values(int64_t first, int count, int64_t* stride) {
        const T* block = v.block(first);
        *stride = value_dim;
        if constexpr (Units<T>::kDepth == 1) {
            *stride = v.block_stride();
            return block;
        } else {
            const int64_t used = (count + 1) / 2;
            if (v.pages && count == 2 * value_depth(count) && whole_vectors()) {
                return reinterpret_cast<const Unit*>(block);
            }
            memset(v_buffer + used * value_dim, 0,
                   sizeof(Unit) * (value_depth(count) - used) * value_dim);
            if (!v.pages) {
                pack_values(block, v.stride, count, value_dim, v_buffer);
                return v_buffer;
            }
            for (int i = 0; i < count; i += 2) {
                Unit* out = v_buffer + i / 2 * value_dim;
                const uint32_t kept = i + 1 < count ? ~0u : 0xffffu;
                const Unit* pairs = reinterpret_cast<const Unit*>(block) + i / 2 * value_dim;
                for (int64_t d = 0; d < value_dim; ++d) {
                    out[d] = pairs[d] & kept;
                }
            }
            return v_buffer;
        }
    }
};

}  // namespace
}  // namespace pylum
