// The k best (score, row) pairs of one query. A pair is one integer key, greater where it is
// better: the score's bits made monotone above, the row's complement below. Keys are appended until
// the buffer is full, then a selection keeps the k best and raises the threshold: a few operations
// a key, where a heap takes a chain of mispredicted branches.
#pragma once

#include <string.h>

#include "common/cpu/vector.h"
#include "topk/topk.h"

namespace pylum::topk {
namespace {

inline int64_t key_of(float score, int64_t row) {
    const float positive_zero = score + 0.0f;  // -0 and 0 tie
    int32_t bits;
    memcpy(&bits, &positive_zero, 4);
    bits ^= (bits >> 31) & 0x7fffffff;
    return static_cast<int64_t>(static_cast<uint64_t>(bits) << 32) | static_cast<uint32_t>(~row);
}

inline int64_t row_of(int64_t key) { return static_cast<uint32_t>(~key); }

inline float score_of(int64_t key) {
    int32_t bits = static_cast<int32_t>(key >> 32);
    bits ^= (bits >> 31) & 0x7fffffff;
    float score;
    memcpy(&score, &bits, 4);
    return score;
}

// Moves the keys above a pivot to the front and returns how many: at least 1, fewer than n. n >= 2.
inline int64_t partition(int64_t* keys, int64_t n) {
    const int64_t a = keys[0], b = keys[n / 2], c = keys[n - 1];
    const int64_t low = a < b ? a : b, high = a < b ? b : a;
    const int64_t pivot = c < low || n == 2 ? low : c < high ? c : high;
    int64_t above = 0;
    for (int64_t i = 0; i < n; ++i) {
        const int64_t key = keys[i];
        keys[i] = keys[above];
        keys[above] = key;
        above += key > pivot;
    }
    return above;
}

// Makes the first k of n keys the greatest.
inline void select(int64_t* keys, int64_t n, int64_t k) {
    while (k > 0 && k < n) {
        const int64_t above = partition(keys, n);
        if (above < k) {
            keys += above, n -= above, k -= above;
        } else {
            n = above;
        }
    }
}

// Greatest first. Keys are distinct, so a key's place among few is the count of greater ones.
inline void sort(int64_t* keys, int64_t n) {
    constexpr int64_t kFew = 128;
    while (n > kFew) {
        const int64_t above = partition(keys, n);
        if (above < n - above) {
            sort(keys, above);
            keys += above, n -= above;
        } else {
            sort(keys + above, n - above);
            n = above;
        }
    }
    int64_t sorted[kFew];
    for (int64_t i = 0; i < n; ++i) {
        int64_t greater = 0;
        for (int64_t j = 0; j < n; ++j) {
            greater += keys[j] > keys[i];
        }
        sorted[greater] = keys[i];
    }
    memcpy(keys, sorted, n * sizeof(int64_t));
}

struct Selection {
    int64_t* keys;  // [capacity_for(k)]
    int64_t k;
    int64_t size;
    int64_t excluded;  // entries of the exclude list behind the rows already seen
    // What the score of a row above all rows seen must reach; equal scores go to the lower row.
    float threshold;

    void clear() {
        size = excluded = 0;
        threshold = -kInfinity;
    }

    void push(int64_t key) {
        keys[size++] = key;
        if (size == capacity_for(k)) {
            shrink();
        }
    }

    // Keeps the k best.
    void shrink() {
        if (size < k) {
            return;
        }
        select(keys, size, k);
        size = k;
        int64_t worst = keys[0];
        for (int64_t i = 1; i < k; ++i) {
            worst = keys[i] < worst ? keys[i] : worst;
        }
        // The next float above the worst score; above infinity NaN, which nothing reaches.
        threshold = score_of(((worst >> 32) + 1) << 32);
    }

    void finish(float* scores, int64_t* rows) {
        shrink();
        sort(keys, size);
        for (int64_t i = 0; i < k; ++i) {
            scores[i] = i < size ? score_of(keys[i]) : -kInfinity;
            rows[i] = i < size ? row_of(keys[i]) : -1;
        }
    }
};

}  // namespace
}  // namespace pylum::topk
