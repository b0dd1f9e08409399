// Where the rows of a strip and the blocks of keys lie, and their way into float32 buffers.
#pragma once

#include "common/attention_inputs.h"
#include "common/cpu/attention_block.h"
#include "common/prefetch.h"

namespace pylum {
namespace {

// A head of one sequence's keys or values, history and targets.
template <typename T>
struct Source {
    const T* packed;  // position 0; with pages, unused
    int64_t stride;
    const T* pages;  // the head's first page, or null
    const int64_t* table;
    int64_t page_stride, dim;
    const T* targets;  // the sequence's first target

    // The block of history that starts at position `first`, a multiple of kBlockKeys.
    const T* block(int64_t first) const {
        return pages ? pages + table[first / kBlockKeys] * page_stride : packed + first * stride;
    }
    int64_t block_stride() const { return pages ? dim : stride; }
};

template <typename T>
inline Source<T> source(const void* data, const void* pool, int64_t row, int64_t head_stride,
                        int64_t dim, int64_t head, const AttentionInputs& p, const Sequence& s) {
    const T* x = static_cast<const T*>(data) + head * head_stride;
    Source<T> from{};
    from.stride = row;
    from.dim = dim;
    if (pool) {
        from.pages = static_cast<const T*>(pool) + head * kBlockKeys * dim;
        from.page_stride = p.kv_heads * kBlockKeys * dim;
        from.table = p.table + (&s - p.batch.sequences) * p.table_row;
        from.targets = x + s.first_target * row;
    } else {
        from.packed = x + s.first_row * row;
        from.targets = from.packed + s.history * row;
    }
    return from;
}

// float32 rows are read in place, bfloat16 through a buffer of [count, dim].
inline Rows rows_of(const float* x, int64_t stride, int, int64_t, float*) { return {x, stride}; }
inline Rows rows_of(const bfloat16* x, int64_t stride, int count, int64_t dim, float* buffer) {
    for (int i = 0; i < count; ++i) {
        int64_t d = 0;
        for (; d + kLanes <= dim; d += kLanes) {
            store(buffer + i * dim + d, load(x + i * stride + d));
        }
        for (; d < dim; ++d) {
            buffer[i * dim + d] = to_float(x[i * stride + d]);
        }
    }
    return {buffer, dim};
}

// Rows far apart are no stream that a CPU would foresee.
template <typename T>
[[gnu::always_inline]] inline void prefetch_rows(const T* rows, int64_t stride, int64_t count,
                                                 int64_t dim) {
    for (int64_t i = 0; i < count; ++i) {
        prefetch(rows + i * stride, dim * static_cast<int64_t>(sizeof(T)));
    }
}

// out[d][lane] = factor * row lane's element d; lanes past `count` are zero.
template <int kVecs, typename T>
__attribute__((noinline)) void load_columns(const T* x, int64_t stride, int count, int64_t dim,
                                            float factor, float* out) {
    constexpr int kLead = kVecs * kLanes;
    for (int v = 0; v < kVecs; ++v) {
        for (int64_t d = 0; d < dim; d += kLanes) {
            const int left = static_cast<int>(dim - d < kLanes ? dim - d : kLanes);
            vfloat tile[kLanes];
            for (int i = 0; i < kLanes; ++i) {
                const int row = v * kLanes + i;
                const T* p = x + row * stride + d;
                tile[i] = row >= count    ? vfloat{}
                          : left < kLanes ? factor * load_first(p, left)
                                          : factor * load(p);
            }
            transpose(tile);
            for (int i = 0; i < left; ++i) {
                store(out + (d + i) * kLead + v * kLanes, tile[i]);
            }
        }
    }
}

// Row lane's element d = factor[lane] * columns[d][lane].
template <int kVecs, typename T>
__attribute__((noinline)) void store_columns(const float* columns, const float* factor, int count,
                                             int64_t dim, T* x, int64_t stride) {
    constexpr int kLead = kVecs * kLanes;
    for (int v = 0; v < kVecs && v * kLanes < count; ++v) {
        const vfloat scale = load(factor + v * kLanes);
        for (int64_t d = 0; d < dim; d += kLanes) {
            const int left = static_cast<int>(dim - d < kLanes ? dim - d : kLanes);
            vfloat tile[kLanes];
            for (int i = 0; i < kLanes; ++i) {
                tile[i] =
                    i < left ? load(columns + (d + i) * kLead + v * kLanes) * scale : vfloat{};
            }
            transpose(tile);
            for (int i = 0; i < kLanes && v * kLanes + i < count; ++i) {
                T* p = x + (v * kLanes + i) * stride + d;
                if (left < kLanes) {
                    store_first(p, tile[i], left);
                } else {
                    store(p, tile[i]);
                }
            }
        }
    }
}

// First row of the strip in q.
inline int64_t strip_row(const Section& strip, const Sequence& s) {
    return s.first_row + strip.first - s.cached +
           (strip.targets ? s.history : static_cast<int64_t>(0));
}

inline Spans history_spans(const Batch& b, const Section& strip, const Sequence& s) {
    Spans spans;
    for (int i = 0; i < strip.rows; ++i) {
        spans.set(i, strip.targets ? target_span(b, s.first_target + strip.first + i)
                                   : history_span(b, s, strip.first + i));
    }
    spans.context = s.context;
    return spans;
}

// f(first, count, spans) for each group of targets in the strip and each block of 64 of its keys,
// numbered within the sequence's targets; the blocks start at the group's first target. Lanes of
// other groups see nothing.
template <typename F>
inline void for_group_blocks(const Batch& b, const Section& strip, const Sequence& s, const F& f) {
    for (int i = 0; i < strip.rows;) {
        const int64_t begin = b.group_begin[s.first_target + strip.first + i];
        Spans spans;
        for (; i < strip.rows; ++i) {
            const int64_t target = s.first_target + strip.first + i;
            if (b.group_begin[target] != begin) {
                break;
            }
            const Span span = group_span(b, target);
            spans.set(i, {span.begin - s.first_target, span.end - s.first_target});
        }
        const int64_t end = spans.most_end;
        for (int64_t first = begin - s.first_target; first < end; first += kBlockKeys) {
            if (!spans.blind(first, kBlockKeys)) {
                f(first, static_cast<int>(end - first < kBlockKeys ? end - first : kBlockKeys),
                  spans);
            }
        }
    }
}

}  // namespace
}  // namespace pylum
