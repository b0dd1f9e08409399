// One block walks the batch and sums targets and tiles before each sequence: bound by latency, a
// few microseconds for thousands of sequences.
#include "common/cuda/attention_sm90.h"
#include "common/cuda/launch.h"
#include "common/cuda/numeric.h"
#include "common/cuda/shared.h"

namespace pylum::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / 32;

struct Counts {
    int64_t targets, keys, history_tiles, target_tiles;
};

struct Sums {
    Counts warp[kWarps];
    int64_t broken;
};

__device__ Counts plus(const Counts& a, const Counts& b) {
    return {a.targets + b.targets, a.keys + b.keys, a.history_tiles + b.history_tiles,
            a.target_tiles + b.target_tiles};
}

// Of all threads up to and including this one.
__device__ Counts scan(Counts own, Sums& sums) {
    const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32;
    for (int step = 1; step < 32; step *= 2) {
        const Counts before{__shfl_up_sync(~0u, own.targets, step),
                            __shfl_up_sync(~0u, own.keys, step),
                            __shfl_up_sync(~0u, own.history_tiles, step),
                            __shfl_up_sync(~0u, own.target_tiles, step)};
        if (lane >= step) {
            own = plus(own, before);
        }
    }
    if (lane == 31) {
        sums.warp[warp] = own;
    }
    __syncthreads();
    for (int w = 0; w < warp; ++w) {
        own = plus(own, sums.warp[w]);
    }
    return own;
}

__device__ Sequence describe(const DeviceBatch& d, int64_t b, bool& good) {
    Sequence s{};
    const int64_t begin = d.offsets[b], end = d.offsets[b + 1], rows = end - begin;
    good = begin >= 0 && rows >= 0 && end <= d.rows && (b > 0 || begin == 0) &&
           (b + 1 < d.batch || end == d.rows);
    s.first_row = begin;
    s.targets = d.num_targets ? d.num_targets[b] : 0;
    good = good && s.targets >= 0 && s.targets <= rows;
    const int64_t fresh = rows - s.targets;
    s.history = d.lengths ? d.lengths[b] : fresh;
    good = good && s.history >= fresh && s.history <= INT32_MAX - kBlockKeys;
    good = good && (!d.lengths || s.history <= d.table_width * kBlockKeys);
    s.cached = s.history - fresh;
    s.context = d.num_context ? d.num_context[b] : 0;
    good = good && s.context >= 0 && s.context <= s.history;
    return s;
}

__global__ void __launch_bounds__(kThreads)
    prepare_kernel(const DeviceBatch d, int history_tile, int target_tile, int32_t* errors) {
    PYLUM_SHARED(Sums, sums);
    if (threadIdx.x == 0) {
        sums.broken = 0;
        d.history_tiles[0] = 0;
        d.target_tiles[0] = 0;
    }
    Counts total{0, 0, 0, 0};
    for (int64_t first = 0; first < d.batch; first += kThreads) {
        const int64_t b = first + threadIdx.x;
        bool good = true;
        Sequence s{};
        if (b < d.batch) {
            s = describe(d, b, good);
        }
        const int64_t history_rows = s.history - s.cached;
        const Counts own{good ? s.targets : 0, good ? s.history + s.targets : 0,
                         good ? (history_rows + history_tile - 1) / history_tile : 0,
                         good ? (s.targets + target_tile - 1) / target_tile : 0};
        __syncthreads();  // the sums of the previous turn have been read
        const Counts up_to = plus(total, scan(own, sums));
        if (!good) {
            atomicOr(reinterpret_cast<int*>(&sums.broken), 1);
        }
        if (b < d.batch) {
            s.first_target = up_to.targets - own.targets;
            s.first_key = up_to.keys - own.keys;
            d.sequences[b] = s;
            d.history_tiles[b + 1] = up_to.history_tiles;
            d.target_tiles[b + 1] = up_to.target_tiles;
        }
        for (int w = 0; w < kWarps; ++w) {
            total = plus(total, sums.warp[w]);
        }
    }
    __syncthreads();
    if (threadIdx.x == 0) {
        const bool counts = (d.key_targets < 0 || total.targets == d.key_targets) &&
                            (d.keys < 0 || total.keys == d.keys);
        const bool rest = d.batch > 0 || d.rows == 0;
        *d.broken = sums.broken || !counts || !rest;
        if (*d.broken) {
            report_error(errors, kBadOffsets);
        }
    }
}

}  // namespace

int64_t history_tiles_bound(const DeviceBatch& b, int rows) {
    return (b.rows + rows - 1) / rows + b.batch;
}

int64_t target_tiles_bound(const DeviceBatch& b, int rows) {
    if (!b.num_targets) {
        return 0;
    }
    return ((b.key_targets < 0 ? b.rows : b.key_targets) + rows - 1) / rows + b.batch;
}

int forward_tile_rows(DType dtype, int64_t dim) {
    return dtype == DType::kFloat32 && dim > 128 ? 32 : 64;
}

int backward_tile_rows(DType dtype, int64_t dim) {
    return dim > (dtype == DType::kFloat32 ? 64 : 128) ? 32 : 64;
}

static void prepare(const AttentionParams& p, int history_tile, int target_tile,
                    cudaStream_t stream) {
    launch("attention: prepare_batch", prepare_kernel, dim3(1), kThreads, sizeof(Sums), stream,
           p.batch, history_tile, target_tile, p.errors);
    launch_prepare_bias(p, stream);
}

void launch_prepare_batch(const AttentionParams& p, int rows, cudaStream_t stream) {
    prepare(p, rows, rows, stream);
}

void launch_attention_forward(const AttentionParams& p, cudaStream_t stream) {
    const int64_t dim = p.in.head_dim > p.in.value_dim ? p.in.head_dim : p.in.value_dim;
    const int rows = forward_tile_rows(p.in.dtype, dim);
    const bool sm90 = runs_on_sm90(p);
    prepare(p, sm90 ? kSm90TileRows : rows, rows, stream);
    if (sm90) {
        launch_forward_sm90(p, stream);
    }
    if (p.in.dtype == DType::kFloat32) {
        launch_forward_float32(p, stream);
    } else if (p.in.dtype == DType::kBFloat16) {
        launch_forward_bfloat16(p, stream);
    } else {
        launch_forward_float16(p, stream);
    }
}

void launch_attention_backward(const AttentionGradients& p, cudaStream_t stream) {
    const AttentionInputs& in = p.inputs.in;
    const int64_t dim = in.head_dim > in.value_dim ? in.head_dim : in.value_dim;
    const int rows = runs_on_sm90(p.inputs) ? kSm90TileRows : backward_tile_rows(in.dtype, dim);
    launch_prepare_batch(p.inputs, rows, stream);
    if (in.bias.given()) {
        launch_bias_range(p, stream);
    }
    if (in.dtype == DType::kFloat32) {
        launch_backward_float32(p, stream);
    } else if (in.dtype == DType::kBFloat16) {
        launch_backward_bfloat16(p, stream);
    } else {
        launch_backward_float16(p, stream);
    }
    if (in.bias.given()) {
        launch_bias_gradients(p, stream);
    }
}

}  // namespace pylum::cuda
