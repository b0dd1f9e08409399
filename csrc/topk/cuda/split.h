// How a call is cut into blocks: by its shapes alone, and without a mark on its result.
#pragma once

#include "topk/topk.h"

namespace pylum::topk {
namespace {

constexpr int kItems = 64;            // scored at once
constexpr int kMergeThreads = 128;    // keys that a block of the merge takes at once
constexpr int64_t kMostCudaK = 4096;  // its keys fill 64 KiB of shared memory

// Queries of a block: many, or as few as fill a row of the matrix unit or of threads.
constexpr int kManyQueries = 32;
constexpr int few_queries(DType dtype) { return dtype == DType::kFloat32 ? 8 : 16; }

struct Split {
    bool few;
    int active;      // queries of a block
    int capacity;    // keys of a query, a power of two
    int64_t tiles;   // blocks that take all queries
    int64_t splits;  // parts of the items, or of each query's candidates
    int64_t range;   // items of a part, where all are scored
};

inline Split split_for(const DeviceParams& d) {
    const Params& p = d.params;
    Split s{};
    const int64_t room = p.k + p.k / 4 + kMergeThreads;
    s.capacity = 256;
    while (s.capacity < room) {
        s.capacity *= 2;
    }
    const int64_t most = 65536 / 8 / s.capacity, fewest = few_queries(p.dtype);
    s.few = d.candidates.rows || most <= fewest || p.num_queries <= fewest;
    const int64_t active = d.candidates.rows ? 1 : s.few ? fewest : kManyQueries;
    s.active = static_cast<int>(active < most ? active : most);
    s.tiles = (p.num_queries + s.active - 1) / s.active;
    // About a thousand blocks; the parts' keys within 256 MiB where one part already is.
    const auto at_most = [](int64_t x, int64_t bound) { return x < bound ? x : bound; };
    const int64_t keys = p.num_queries * p.k;
    int64_t wanted = at_most(1024 / (s.tiles ? s.tiles : 1), 256);
    wanted = at_most(wanted, (int64_t{1} << 25) / (keys ? keys : 1));
    wanted = at_most(wanted, (d.candidates.rows ? d.candidates.total : p.num_items) / 1024);
    wanted = wanted < 1 ? 1 : wanted;
    s.splits = wanted;
    if (!d.candidates.rows) {
        s.range = (p.num_items + wanted - 1) / wanted;
        s.range = (s.range + kItems - 1) / kItems * kItems;
        s.splits = s.range ? (p.num_items + s.range - 1) / s.range : 0;
    }
    return s;
}

// Keys of the parts' best items: [splits, num_queries, k].
inline int64_t parts_needed(const DeviceParams& d) {
    return split_for(d).splits * d.params.num_queries * d.params.k;
}

}  // namespace
}  // namespace pylum::topk
