// The one description of a ragged batch and its mask that every attention kernel reads.
//
// A sequence is context tokens, history tokens, then targets. Positions count context and history;
// a target stands at the position after those it sees, plus its rank in its group.
#pragma once

#include <cstdint>

namespace pylum {

struct Sequence {
    int64_t first_row;     // of q: the rows not cached, then the targets
    int64_t history;       // context and history tokens, cached ones included
    int64_t cached;        // of these, the first ones, which have no row of q
    int64_t context;       // leading tokens seen by all
    int64_t targets;       // trailing rows
    int64_t first_target;  // number of its first target in the batch
    int64_t first_key;     // of all histories and targets of the batch
};

struct Batch {
    const Sequence* sequences;   // [batch]
    const int64_t* visible;      // [all targets] positions a target sees, context included
    const int64_t* group_begin;  // [all targets] first target of its group, in the batch
    int64_t batch;
    int64_t window;    // positions a row sees, itself included; 0: all
    int64_t min_full;  // trailing history rows the window spares; 0: no row, not even targets
};

// Consecutive rows of one sequence and one row class, for every head.
struct Section {
    int32_t sequence;
    int32_t rows;
    int64_t first;  // position of the first history row, or number within the targets
    bool targets;
};

// Rows that stand in the vector lanes together.
constexpr int kStripRows = 32;
// Rows that one task takes through the keys together.
constexpr int kTaskRows = 4 * kStripRows;
// Keys are taken in blocks that start at multiples of this position; pages hold as many.
constexpr int kBlockKeys = 64;
// Targets see the history in chunks that start at multiples of this position: each is a sum of its
// own, merged in order, so that chunks may be given to different threads.
constexpr int kChunkKeys = 512;

// The keys a row sees: [begin, end) and [0, context).
struct Span {
    int64_t begin, end;
};

namespace {

inline Span history_span(const Batch& b, const Sequence& s, int64_t position) {
    if (position < s.context) {
        return {0, s.context};
    }
    const bool spared = b.window == 0 || position >= s.history - b.min_full;
    const int64_t begin = spared ? 0 : position + 1 - b.window;
    return {begin < 0 ? 0 : begin, position + 1};
}

// Target `i` of the batch on the history.
inline Span target_span(const Batch& b, int64_t i) {
    const bool spared = b.window == 0 || b.min_full > 0;
    const int64_t begin = spared ? 0 : b.visible[i] + i - b.group_begin[i] + 1 - b.window;
    return {begin < 0 ? 0 : begin, b.visible[i]};
}

// Target `i` of the batch on its own group: numbers of targets in the batch.
inline Span group_span(const Batch& b, int64_t i) {
    const bool spared = b.window == 0 || b.min_full > 0;
    const int64_t begin = spared ? 0 : i + 1 - b.window;
    return {begin < b.group_begin[i] ? b.group_begin[i] : begin, i + 1};
}

}  // namespace

}  // namespace pylum
