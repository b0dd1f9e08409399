// A block scores a part of the items for a tile of queries, 64 items at a time, and keeps each
// query's best keys in shared memory; then a block a query merges the parts. Items are read once
// for each tile of queries: bound by 2 * queries * items * dim flops, for few queries by the items.
#include "common/cuda/launch.h"
#include "common/cuda/shared.h"
#include "topk/cuda/scores.h"
#include "topk/cuda/selection.h"

namespace pylum::topk {
namespace {

constexpr int kSpan = 2048;  // items whose exclusions stand in shared memory at once
constexpr int kWarps = kThreads / kWarp;

// The list of query q; empty where its offsets are not such.
struct List {
    const int64_t* rows;
    int64_t count;
    bool good;
};

__device__ inline List list_of(const Lists& lists, int64_t q) {
    if (!lists.rows) {
        return {nullptr, 0, true};
    }
    const int64_t begin = lists.offsets[q], end = lists.offsets[q + 1];
    const bool good = begin >= 0 && begin <= end && end <= lists.total;
    return {lists.rows + (good ? begin : 0), good ? end - begin : 0, good};
}

template <typename T, int kQueries>
struct Tiles {
    T queries[2][kQueries * kDepth<T>];
    T items[2][kItems * kDepth<T>];
    unsigned excluded[kQueries][kSpan / 32];
    Selection selections[kQueries];
};

template <typename T, int kQueries>
class Part {
  public:
    __device__ __forceinline__ Part(const DeviceParams& device, const Split& how,
                                    Tiles<T, kQueries>& shared)
        : d(device), p(device.params), split(how), tiles(shared) {
        keys = reinterpret_cast<Key*>(&tiles + 1);
        const auto tiles_of_queries = static_cast<unsigned>(split.tiles);
        part = blockIdx.x / tiles_of_queries;
        first_query = static_cast<int64_t>(blockIdx.x % tiles_of_queries) * split.active;
        const int64_t left = p.num_queries - first_query;
        active = static_cast<int>(left < split.active ? left : split.active);
        candidates = list_of(d.candidates, first_query);
        if (d.candidates.rows) {
            const auto parts = static_cast<unsigned>(split.splits);
            const auto panels = static_cast<unsigned>((candidates.count + kItems - 1) / kItems);
            const int64_t range = static_cast<int64_t>((panels + parts - 1) / parts) * kItems;
            begin = min(part * range, candidates.count);
            end = min(begin + range, candidates.count);
        } else {
            begin = part * split.range;
            end = min(begin + split.range, p.num_items);
        }
        if (threadIdx.x < kQueries) {
            tiles.selections[threadIdx.x].clear();
        }
    }

    __device__ __forceinline__ void run() {
        const int chunks = p.dim ? static_cast<int>((p.dim + kDepth<T> - 1) / kDepth<T>) : 1;
        const int64_t steps = (end - begin + kItems - 1) / kItems * chunks;
        Scores<T, kQueries> scores;
        Next next{begin, 0};
        if (steps > 0) {
            load(next, 0, chunks);
        }
        copy_async_commit();
        int64_t first = begin;
        int chunk = 0;
        for (int64_t step = 0; step < steps; ++step) {
            if (step + 1 < steps) {
                load(next, static_cast<int>(step + 1) & 1, chunks);
            }
            copy_async_commit();
            if (chunk == 0) {
                scores.clear();
                if ((first - begin) % kSpan == 0 && (first == begin || !d.candidates.rows)) {
                    note_excluded(first);
                }
            }
            copy_async_wait<1>();
            __syncthreads();
            scores.add(tiles.queries[chunks == 1 ? 0 : step & 1], tiles.items[step & 1]);
            if (++chunk == chunks) {
                select(scores, first);
                chunk = 0;
                first += kItems;
            }
            __syncthreads();  // all have read the tiles and appended their keys
            if (chunk == 0) {
                shrink_full();
            }
        }
        copy_async_wait<0>();
        __syncthreads();
        finish();
    }

  private:
    // Row of the item at a position of the part; negative where there is none.
    __device__ __forceinline__ int64_t item(int64_t position) const {
        if (position >= end) {
            return -1;
        }
        if (!d.candidates.rows) {
            return position;
        }
        const int64_t row = candidates.rows[position];
        return row < p.num_items ? row : -1;
    }

    // What is to be loaded next: items from a position on, and their columns in chunks.
    struct Next {
        int64_t first;
        int chunk;
    };

    __device__ __forceinline__ void load(Next& next, int buffer, int chunks) {
        const int64_t column = static_cast<int64_t>(next.chunk) * kDepth<T>;
        gather_tile<T, kDepth<T>, kItems, kThreads>(
            tiles.items[buffer], static_cast<const T*>(p.items), p.items_stride, column, p.dim,
            wide_rows<T>(p.items, p.items_stride, 0, p.dim),
            [&](int r) { return item(next.first + r); });
        if (next.first == begin || chunks > 1) {
            gather_tile<T, kDepth<T>, kQueries, kThreads>(
                tiles.queries[buffer], static_cast<const T*>(p.queries), p.queries_stride, column,
                p.dim, wide_rows<T>(p.queries, p.queries_stride, 0, p.dim),
                [&](int r) { return r < active ? first_query + r : -1; });
        }
        if (++next.chunk == chunks) {
            next.chunk = 0;
            next.first += kItems;
        }
    }

    // Bits of the rows that the queries exclude: of items first, first + 1 ...; or, of candidates,
    // of all rows by their remainder, so that only a set bit is worth a look into the list.
    __device__ __forceinline__ void note_excluded(int64_t first) {
        if (!d.exclude.rows) {
            return;
        }
        for (int i = threadIdx.x; i < kQueries * (kSpan / 32); i += kThreads) {
            tiles.excluded[i / (kSpan / 32)][i % (kSpan / 32)] = 0;
        }
        __syncthreads();
        for (int q = static_cast<int>(threadIdx.x) / kWarp; q < active; q += kWarps) {
            const List list = list_of(d.exclude, first_query + q);
#pragma unroll 4
            for (int64_t i = threadIdx.x % kWarp; i < list.count; i += kWarp) {
                const int64_t row = list.rows[i];
                const int64_t bit = d.candidates.rows ? row % kSpan : row - first;
                if (bit >= 0 && bit < kSpan) {
                    atomicOr(&tiles.excluded[q][bit / 32], 1u << bit % 32);
                }
            }
        }
        __syncthreads();
    }

    __device__ __forceinline__ bool excludes(int q, int64_t row, int64_t position) const {
        const int bit = static_cast<int>((d.candidates.rows ? row : position - begin) % kSpan);
        if (!(tiles.excluded[q][bit / 32] >> bit % 32 & 1)) {
            return false;
        }
        bool found = !d.candidates.rows;
        const List list = list_of(d.exclude, first_query + q);
        for (int64_t i = 0; i < list.count && !found; ++i) {
            found = list.rows[i] == row;
        }
        return found;
    }

    __device__ __forceinline__ void select(const Scores<T, kQueries>& scores, int64_t first) {
        scores.each([&](int q, int i, float score) {
            if (!(score >= tiles.selections[q].least) || q >= active) {
                return;
            }
            const int64_t row = item(first + i);
            if (row >= 0 && !(d.exclude.rows && excludes(q, row, first + i))) {
                tiles.selections[q].offer(keys + q * split.capacity, key_of(score, row));
            }
        });
    }

    // A warp a query.
    template <typename Wanted>
    __device__ __forceinline__ void shrink(const Wanted& wanted) {
        const int lane = static_cast<int>(threadIdx.x) % kWarp;
        for (int q = static_cast<int>(threadIdx.x) / kWarp; q < active; q += kWarps) {
            if (wanted(tiles.selections[q].size)) {
                tiles.selections[q].shrink(keys + q * split.capacity, static_cast<int>(p.k),
                                           d.candidates.rows != nullptr, lane, kWarp,
                                           [] { __syncwarp(); });
            }
            __syncwarp();
        }
        __syncthreads();
    }

    __device__ __forceinline__ void shrink_full() {
        shrink([&](int size) { return size > split.capacity - kItems; });
    }

    __device__ __forceinline__ void finish() {
        shrink([](int) { return true; });
        for (int q = static_cast<int>(threadIdx.x) / kWarp; q < active; q += kWarps) {
            Key* to = d.parts + (part * p.num_queries + first_query + q) * p.k;
            for (int i = threadIdx.x % kWarp; i < p.k; i += kWarp) {
                to[i] = i < tiles.selections[q].size ? keys[q * split.capacity + i] : 0;
            }
        }
    }

    const DeviceParams& d;
    const Params& p;
    const Split& split;
    Tiles<T, kQueries>& tiles;
    Key* keys;  // [active, capacity]
    int64_t part, first_query, begin, end;
    int active;
    List candidates;
};

// Shared memory holds two blocks at most, so registers need not be saved.
template <typename T, int kQueries>
__global__ void __launch_bounds__(kThreads, 2)
    score_kernel(const __grid_constant__ DeviceParams d, const __grid_constant__ Split split) {
    using Shared = Tiles<T, kQueries>;
    PYLUM_SHARED(Shared, tiles);
    Part<T, kQueries>(d, split, tiles).run();
}

// Whether a thread's share of the lists of query q is right; else noted.
__device__ inline bool check_list(const DeviceParams& d, const Lists& lists, int64_t q) {
    const List list = list_of(lists, q);
    const int64_t last = d.params.num_queries;
    const bool ends = !lists.rows || ((q > 0 || lists.offsets[0] == 0) &&
                                      (q + 1 < last || lists.offsets[last] == lists.total));
    if (!list.good || !ends) {
        report_error(d.errors, kBadOffsets);
        return false;
    }
    bool good = true;
    for (int64_t i = threadIdx.x; i < list.count; i += kMergeThreads) {
        good = good && list.rows[i] >= 0 && list.rows[i] < d.params.num_items;
    }
    if (!good) {
        report_error(d.errors, kBadIndices);
    }
    return good;
}

__global__ void __launch_bounds__(kMergeThreads)
    merge_kernel(const __grid_constant__ DeviceParams d, int splits, int capacity) {
    PYLUM_SHARED(Selection, selection);
    Key* keys = reinterpret_cast<Key*>(&selection + 1);
    const Params& p = d.params;
    const int thread = static_cast<int>(threadIdx.x), k = static_cast<int>(p.k);
    const auto shrink = [&] {
        selection.shrink(keys, k, d.candidates.rows != nullptr, thread, kMergeThreads,
                         [] { __syncthreads(); });
    };
    for (int64_t q = blockIdx.x; q < p.num_queries; q += gridDim.x) {
        const bool bad = !check_list(d, d.exclude, q) | !check_list(d, d.candidates, q);
        const bool broken = __syncthreads_or(bad) != 0;
        if (thread == 0) {
            selection.clear();
        }
        __syncthreads();
        const int all = splits * k;
        for (int first = 0; first < all; first += kMergeThreads) {
            const int i = first + thread;
            if (i < all) {
                selection.offer(keys, d.parts[(i / k * p.num_queries + q) * k + i % k]);
            }
            __syncthreads();
            if (selection.size > capacity - kMergeThreads) {
                shrink();
            }
            __syncthreads();
        }
        shrink();
        for (int i = thread; i < k; i += kMergeThreads) {
            const bool found = i < selection.size && !broken;
            p.scores[q * k + i] = found ? score_of(keys[i]) : broken ? quiet_nan() : -INFINITY;
            p.indices[q * k + i] = found ? row_of(keys[i]) : -1;
        }
        __syncthreads();  // the next query begins
    }
}

template <typename T, int kQueries>
void launch_scores(const DeviceParams& d, const Split& split, cudaStream_t stream) {
    const size_t keys = sizeof(Key) * split.active * split.capacity;
    launch("topk scores", score_kernel<T, kQueries>,
           dim3(blocks_for(split.tiles * split.splits, 1)), kThreads,
           sizeof(Tiles<T, kQueries>) + keys, stream, d, split);
}

}  // namespace

void launch_forward(const DeviceParams& d, cudaStream_t stream) {
    if (d.params.k == 0) {
        return;
    }
    const Split split = split_for(d);
    for_dtype(d.params.dtype, [&](auto type) {
        using T = decltype(type);
        constexpr int kFew = few_queries(sizeof(T) == 4 ? DType::kFloat32 : DType::kBFloat16);
        split.few ? launch_scores<T, kFew>(d, split, stream)
                  : launch_scores<T, kManyQueries>(d, split, stream);
    });
    launch("topk merge", merge_kernel, dim3(blocks_for(d.params.num_queries, 1)), kMergeThreads,
           sizeof(Selection) + sizeof(Key) * split.capacity, stream, d,
           static_cast<int>(split.splits), split.capacity);
}

}  // namespace pylum::topk
