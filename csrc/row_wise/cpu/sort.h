// Lookups of all uses as one sorted array of (row, gradient row): a stable LSD radix sort.
#pragma once

#include <cstring>

#include "common/parallel.h"
#include "row_wise/row_wise.h"

namespace pylum::row_wise::PYLUM_ISA {
namespace {

inline int bits_for(int64_t count) {
    int bits = 0;
    while (bits < 63 && (int64_t{1} << bits) < count) {
        ++bits;
    }
    return bits;
}

struct Sorted {
    const uint64_t* keys;  // row << shift | gradient row, counted over all uses; sorted by row
    uint64_t* free;        // the other buffer, lookups + 1 long
    int64_t lookups;
    int shift;
    bool good;  // every index is in range
};

// Keys of the lookups [begin, end) of a use whose first gradient row is number `first`. What the
// first pass scatters to is asked for on the way: it comes faster in order.
inline bool make_keys(const Use& use, int64_t first, int64_t rows, int shift, int64_t begin,
                      int64_t end, uint64_t* keys, const uint64_t* scattered) {
    int64_t bag = 0;
    if (use.offsets) {
        int64_t above = use.grad_rows;  // the last bag that starts at or before `begin`
        while (above - bag > 1) {
            const int64_t middle = bag + (above - bag) / 2;
            (use.offsets[middle] <= begin ? bag : above) = middle;
        }
    }
    for (int64_t i = begin; i < end; ++i) {
        const int64_t row = use.indices[i * use.indices_stride];
        if (static_cast<uint64_t>(row) >= static_cast<uint64_t>(rows)) {
            return false;
        }
        if (use.offsets) {
            while (use.offsets[bag + 1] <= i) {
                ++bag;
            }
        }
        const int64_t grad_row = first + (use.offsets ? bag : i);
        keys[i] = static_cast<uint64_t>(row) << shift | static_cast<uint64_t>(grad_row);
        if (i % 8 == 0) {
            __builtin_prefetch(scattered + i, 1);
        }
    }
    return true;
}

// One pass over keys [begin, end): how many have each digit, and, once counts say where those of a
// digit begin, each key to its place. mask is that of the digit, above `bit`.
inline void count_keys(const uint64_t* __restrict keys, int64_t begin, int64_t end, int bit,
                       uint64_t mask, uint64_t* __restrict counts) {
    memset(counts, 0, (mask + 1) * sizeof(uint64_t));
    for (int64_t i = begin; i < end; ++i) {
        ++counts[keys[i] >> bit & mask];
    }
}

inline void scatter_keys(const uint64_t* __restrict keys, int64_t begin, int64_t end, int bit,
                         uint64_t mask, uint64_t* __restrict next, uint64_t* __restrict to) {
    for (int64_t i = begin; i < end; ++i) {
        to[next[keys[i] >> bit & mask]++] = keys[i];
    }
}

// Bits of a pass: as few passes as kMostDigit allows, of equal length.
inline int digit_for(int bits) {
    const int passes = (bits + kMostDigit - 1) / kMostDigit;
    return passes ? (bits + passes - 1) / passes : 1;
}

// The order of equal rows is that of the lookups, so the result does not depend on the chunks.
inline Sorted sort_lookups(const Params& p) {
    int64_t lookups = 0, grad_rows = 0;
    for (int64_t u = 0; u < p.num_uses; ++u) {
        lookups += p.uses[u].lookups;
        grad_rows += p.uses[u].grad_rows;
    }
    uint64_t* from = p.words;
    uint64_t* to = p.words + lookups + 1;
    const int shift = bits_for(grad_rows);
    bool good = true;
    int64_t lookup = 0, first = 0;
    for (int64_t u = 0; u < p.num_uses; ++u) {
        const Use& use = p.uses[u];
        const int64_t parts = (use.lookups + kSortChunk - 1) / kSortChunk;
        parallel_for(parts, p.threads, [&](int64_t part) {
            const int64_t begin = part * kSortChunk;
            const int64_t end = begin + kSortChunk < use.lookups ? begin + kSortChunk : use.lookups;
            if (!make_keys(use, first, p.rows, shift, begin, end, from + lookup, to + lookup)) {
                __atomic_store_n(&good, false, __ATOMIC_RELAXED);
            }
        });
        lookup += use.lookups;
        first += use.grad_rows;
    }
    int64_t chunks = sort_chunks_bound(lookups);
    chunks = chunks > p.threads ? p.threads : chunks;
    const int64_t length = (lookups + chunks - 1) / chunks;
    const int top = good ? shift + bits_for(p.rows) : shift;
    const int bits = digit_for(top - shift);
    const int64_t digits = int64_t{1} << bits;
    const uint64_t mask = static_cast<uint64_t>(digits) - 1;
    uint64_t* starts = p.words + words_needed(lookups) - (chunks << bits);
    const auto end_of = [&](int64_t c) {
        return (c + 1) * length < lookups ? (c + 1) * length : lookups;
    };
    for (int bit = shift; bit < top; bit += bits) {
        parallel_for(chunks, p.threads, [&](int64_t c) {
            count_keys(from, c * length, end_of(c), bit, mask, starts + c * digits);
        });
        uint64_t at = 0;
        for (int64_t d = 0; d < digits; ++d) {
            for (int64_t c = 0; c < chunks; ++c) {
                const uint64_t count = starts[c * digits + d];
                starts[c * digits + d] = at;
                at += count;
            }
        }
        parallel_for(chunks, p.threads, [&](int64_t c) {
            scatter_keys(from, c * length, end_of(c), bit, mask, starts + c * digits, to);
        });
        uint64_t* other = from;
        from = to;
        to = other;
    }
    return {.keys = from, .free = to, .lookups = lookups, .shift = shift, .good = good};
}

}  // namespace
}  // namespace pylum::row_wise::PYLUM_ISA
