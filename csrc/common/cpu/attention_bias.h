// The relative bias of one strip of rows and one block of keys, and its gradient. Rows are taken
// one by one, each along its keys, in a line of its own; a transpose brings lines to the layout of
// scores. In most blocks of a long history all keys share the row's bucket: two searches then
// serve the whole line.
#pragma once

#include "common/attention_bias.h"
#include "common/attention_inputs.h"
#include "common/cpu/attention_block.h"

namespace pylum {
namespace {

// The rows of a strip.
struct BiasRows {
    int count;
    int64_t time[kStripRows];
    int64_t position[kStripRows];
    int64_t target[kStripRows];  // number within the sequence's targets
};

// A block of keys: of the history, or of the sequence's targets.
struct BiasKeys {
    const int64_t* times;
    int64_t first;  // position of the first one, or its number within the targets
    int count;
    bool targets;
    int64_t earliest, latest;
};

inline BiasRows bias_rows(const AttentionInputs& p, const Section& strip, const Sequence& s,
                          int64_t row) {
    BiasRows rows{};
    rows.count = strip.rows;
    for (int i = 0; i < strip.rows; ++i) {
        const int64_t n = strip.first + i;
        rows.time[i] = p.bias.times ? p.bias.query_times[row + i] : 0;
        rows.position[i] = n;
        rows.target[i] = n;
        if (strip.targets) {
            const int64_t target = s.first_target + n;
            rows.position[i] = p.batch.visible[target] + target - p.batch.group_begin[target];
        }
    }
    return rows;
}

inline BiasKeys bias_keys(const RelativeBias& b, const Sequence& s, int64_t first, int count,
                          bool targets) {
    BiasKeys keys{.times = nullptr,
                  .first = first,
                  .count = count,
                  .targets = targets,
                  .earliest = 0,
                  .latest = 0};
    if (b.times) {
        keys.times = b.timestamps + s.first_key + (targets ? s.history : 0) + first;
        keys.earliest = keys.latest = keys.times[0];
        for (int i = 1; i < count; ++i) {
            const int64_t time = keys.times[i];
            keys.earliest = time < keys.earliest ? time : keys.earliest;
            keys.latest = time > keys.latest ? time : keys.latest;
        }
    }
    return keys;
}

// Entry of the position table for key 0 and row `lane`, before it is bounded.
inline int64_t first_entry(const RelativeBias& b, const BiasRows& rows, const BiasKeys& keys,
                           int lane) {
    const int64_t place = keys.targets ? rows.target[lane] : rows.position[lane];
    return keys.first - place + b.length - 1;
}

inline int64_t bounded_entry(const RelativeBias& b, int64_t entry) {
    const int64_t last = 2 * b.length - 2;
    return entry < 0 ? 0 : entry > last ? last : entry;
}

// The one bucket of all keys of the block, or -1 where there may be several.
inline int64_t common_bucket(const RelativeBias& b, const BiasKeys& keys, int64_t time) {
    const uint64_t a = time_gap(time, keys.earliest), z = time_gap(time, keys.latest);
    const bool inside = keys.earliest < time && time < keys.latest;
    const uint64_t least = inside ? 0 : a < z ? a : z;
    const int64_t bucket = gap_bucket(b, least);
    return bucket == gap_bucket(b, a > z ? a : z) ? bucket : -1;
}

inline void bias_line(const RelativeBias& b, const BiasRows& rows, const BiasKeys& keys, int lane,
                      float* line) {
    if (b.positions) {
        const int64_t entry = first_entry(b, rows, keys, lane);
        if (entry >= 0 && entry + keys.count <= 2 * b.length - 1) {
            memcpy(line, b.positions + entry, sizeof(float) * keys.count);
        } else {
            for (int i = 0; i < keys.count; ++i) {
                line[i] = b.positions[bounded_entry(b, entry + i)];
            }
        }
    } else {
        memset(line, 0, sizeof(float) * keys.count);
    }
    if (!b.times) {
        return;
    }
    const int64_t time = rows.time[lane], bucket = common_bucket(b, keys, time);
    if (bucket >= 0) {
        const float bias = b.times[bucket];
        for (int i = 0; i < keys.count; ++i) {
            line[i] += bias;
        }
        return;
    }
    for (int i = 0; i < keys.count; ++i) {
        line[i] += b.times[gap_bucket(b, time_gap(time, keys.times[i]))];
    }
}

// scores[key][lane] += the bias of the pair, for the lanes that hold rows.
template <int kVecs>
__attribute__((noinline)) void add_bias(const RelativeBias& b, const BiasRows& rows,
                                        const BiasKeys& keys, float* scores) {
    alignas(64) float lines[kLanes][kBlockKeys];
    for (int v = 0; v < kVecs && v * kLanes < rows.count; ++v) {
        for (int l = 0; l < kLanes; ++l) {
            if (v * kLanes + l < rows.count) {
                bias_line(b, rows, keys, v * kLanes + l, lines[l]);
            } else {
                memset(lines[l], 0, sizeof(lines[l]));
            }
        }
        for (int first = 0; first < keys.count; first += kLanes) {
            vfloat tile[kLanes];
            for (int l = 0; l < kLanes; ++l) {
                tile[l] = load(lines[l] + first);
            }
            transpose(tile);
            for (int i = 0; i < kLanes && first + i < keys.count; ++i) {
                float* at = scores + (first + i) * kVecs * kLanes + v * kLanes;
                store(at, load(at) + tile[i]);
            }
        }
    }
}

// Adds the gradients of the scores, [key][lane] and zero where a row does not see a key, to those
// of the tables.
template <int kVecs>
__attribute__((noinline)) void add_bias_gradient(const RelativeBias& b, const BiasRows& rows,
                                                 const BiasKeys& keys, const float* dscores,
                                                 double* dpositions, double* dtimes) {
    alignas(64) float line[kBlockKeys];
    for (int lane = 0; lane < rows.count; ++lane) {
        float total = 0.0f;
        for (int i = 0; i < keys.count; ++i) {
            line[i] = dscores[i * kVecs * kLanes + lane];
            total += line[i];
        }
        if (b.positions) {
            const int64_t entry = first_entry(b, rows, keys, lane);
            for (int i = 0; i < keys.count; ++i) {
                dpositions[bounded_entry(b, entry + i)] += line[i];
            }
        }
        if (!b.times) {
            continue;
        }
        const int64_t time = rows.time[lane], bucket = common_bucket(b, keys, time);
        if (bucket >= 0) {
            dtimes[bucket] += total;
            continue;
        }
        for (int i = 0; i < keys.count; ++i) {
            dtimes[gap_bucket(b, time_gap(time, keys.times[i]))] += line[i];
        }
    }
}

}  // namespace
}  // namespace pylum
