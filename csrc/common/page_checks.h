// Checks of a paged prefix that the ops on it share. Included by binding.cpp files only.
#pragma once

#include "common/batch_description.h"
#include "common/binding.h"
#include "common/sequence.h"

namespace pylum {

inline void check_pool(const Tensor& pool, const char* name, const Tensor& x, int64_t dim) {
    expect_like(pool, name, x, "k");
    if (pool.dtype != x.dtype) {
        fail_type(name, std::string(dtype_name(x.dtype)) + " like k", pool);
    }
    expect(pool.dims == 4 && pool.is_shape({pool.size(0), x.size(1), kBlockKeys, dim}) &&
               pool.contiguous(),
           name,
           "[pages, kv_heads = " + std::to_string(x.size(1)) + ", " + std::to_string(kBlockKeys) +
               ", dim = " + std::to_string(dim) + "], contiguous",
           pool);
}

inline void check_table(const Tensor& table, const Tensor& first, int64_t batch) {
    expect_like(table, "prefix.table", first, "the first tensor");
    expect_dtype(table, "prefix.table", DType::kInt64);
    expect(table.dims == 2 && table.size(0) == batch && table.last_contiguous(), "prefix.table",
           "[batch = " + std::to_string(batch) + ", max_pages], last dimension contiguous", table);
}

// The pages that hold tokens [begin, end) of sequence `b`.
inline void check_pages(const Tensor& table, int64_t b, int64_t begin, int64_t end,
                        int64_t num_pages) {
    const int64_t last = (end + kBlockKeys - 1) / kBlockKeys;
    if (begin < end && last > table.size(1)) {
        throw py::value_error("prefix.table must hold " + std::to_string(last) + " pages for the " +
                              std::to_string(end) + " tokens of sequence " + std::to_string(b) +
                              ", got " + std::to_string(table.size(1)));
    }
    const int64_t* pages = table.as<int64_t>() + b * table.stride(0);
    for (int64_t i = begin / kBlockKeys; begin < end && i < last; ++i) {
        if (pages[i] < 0 || pages[i] >= num_pages) {
            fail_number("prefix.table[" + std::to_string(b) + ", " + std::to_string(i) + "]",
                        "a page in [0, " + std::to_string(num_pages) + ")", pages[i]);
        }
    }
}

inline void check_pools(const Tensor& k_pages, const Tensor& v_pages, const Tensor& k,
                        const Tensor& v) {
    check_pool(k_pages, "prefix.k", k, k.size(2));
    check_pool(v_pages, "prefix.v", v, v.size(2));
    expect(v_pages.size(0) == k_pages.size(0), "prefix.v",
           "of " + std::to_string(k_pages.size(0)) + " pages like prefix.k", v_pages);
}

// Pools and pages of the histories that k and v of later rows join; returns their lengths.
inline const int64_t* check_prefix(const Tensor& k_pages, const Tensor& v_pages,
                                   const Tensor& table, const Tensor& lengths, const Tensor& k,
                                   const Tensor& v, const Tensor& offsets) {
    check_pools(k_pages, v_pages, k, v);
    const int64_t batch = offsets.size(0) - 1;
    check_table(table, k, batch);
    const int64_t* tokens = integers(lengths, "prefix.lengths", "batch", batch);
    for (int64_t b = 0; b < batch; ++b) {
        check_pages(table, b, 0, tokens[b], k_pages.size(0));
    }
    return tokens;
}

}  // namespace pylum
