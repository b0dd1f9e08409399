// One thread per 16 bytes of a bag's output; neighbours read neighbouring parts of the same rows.
// Every row of every bag is read once, in the bag's order: bound by random rows.
#include "common/cuda/embedding_table.h"
#include "common/cuda/launch.h"
#include "common/cuda/numeric.h"
#include "embedding_bag/embedding_bag.h"

namespace pylum::embedding_bag {
namespace {

using namespace cuda;

constexpr int kThreads = 256;
constexpr int kTables = 44;  // of a launch: they go with the kernel's arguments
constexpr int kAhead = 4;    // rows whose loads are under way at once

struct Tables {
    Table at[kTables];
};

struct Output {
    void* data;
    int64_t batch, width;
    bool mean;
    int32_t* errors;
};

// Row and count elements of `kAhead` lookups; those past the bag, and rows outside the table, are
// not read.
template <typename T, int kCount>
__device__ void add_lookups(const Table& t, int64_t begin, int64_t end, int64_t from,
                            float (&sums)[kCount], int32_t* errors) {
    constexpr int kPiece = kCount < kPack<T> ? kCount : kPack<T>;
    Pack<T, kPiece> rows[kAhead][kCount / kPiece];
    bool good[kAhead];
#pragma unroll
    for (int a = 0; a < kAhead; ++a) {
        const int64_t row = begin + a < end ? t.indices[(begin + a) * t.indices_stride] : 0;
        good[a] = row >= 0 && row < t.rows;
        if (begin + a < end && good[a]) {
            const T* x = static_cast<const T*>(t.data) + row * t.stride + from;
#pragma unroll
            for (int i = 0; i < kCount / kPiece; ++i) {
                rows[a][i] = load_pack<kPiece>(x + i * kPiece);
            }
        }
    }
#pragma unroll
    for (int a = 0; a < kAhead; ++a) {
        if (begin + a >= end) {
            break;
        }
        if (!good[a]) {
            report_error(errors, kBadIndices);
        }
#pragma unroll
        for (int i = 0; i < kCount; ++i) {
            sums[i] += good[a] ? to_float(rows[a][i / kPiece].at[i % kPiece]) : quiet_nan();
        }
    }
}

template <typename Out, int kCount>
__device__ void run_item(const Table& t, const Output& out, int64_t bag, int64_t from) {
    const int64_t begin = t.offsets[bag], end = t.offsets[bag + 1];
    const bool first = bag == 0, last = bag == out.batch - 1;
    const bool good = begin >= 0 && begin <= end && end <= t.lookups && (!first || begin == 0) &&
                      (!last || end == t.lookups);
    float sums[kCount] = {};
    if (!good) {
        report_error(out.errors, kBadOffsets);
#pragma unroll
        for (int i = 0; i < kCount; ++i) {
            sums[i] = quiet_nan();
        }
    }
    for (int64_t at = begin; good && at < end; at += kAhead) {
        if (t.dtype == DType::kFloat32) {
            add_lookups<float>(t, at, end, from, sums, out.errors);
        } else if (t.dtype == DType::kBFloat16) {
            add_lookups<__nv_bfloat16>(t, at, end, from, sums, out.errors);
        } else {
            add_lookups<__half>(t, at, end, from, sums, out.errors);
        }
    }
    const float divisor = out.mean && end > begin ? static_cast<float>(end - begin) : 1.0f;
    Pack<Out, kCount> pack;
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
        pack.at[i] = from_float<Out>(sums[i] / divisor);
    }
    store_pack<kCount>(static_cast<Out*>(out.data) + bag * out.width + t.column + from, pack);
}

template <typename Out, int kCount>
__global__ void __launch_bounds__(kThreads)
    forward_kernel(const __grid_constant__ Tables tables, const Output out, int bags_per_block) {
    const Table& t = tables.at[blockIdx.y];
    const int packs = static_cast<int>(t.dim / kCount);
    const int64_t step = static_cast<int64_t>(gridDim.x) * bags_per_block;
    for (int64_t first = static_cast<int64_t>(blockIdx.x) * bags_per_block; first < out.batch;
         first += step) {
        const int64_t left = out.batch - first;
        const int bags = static_cast<int>(left < bags_per_block ? left : bags_per_block);
        for (int i = threadIdx.x; i < bags * packs; i += kThreads) {
            run_item<Out, kCount>(t, out, first + i / packs,
                                  static_cast<int64_t>(i % packs) * kCount);
        }
    }
}

}  // namespace

void launch_forward(const Params& p, cudaStream_t stream) {
    const Output out{p.out, p.batch, p.width, p.mean, p.errors};
    for_dtype(p.out_dtype, [&](auto type) {
        using Out = decltype(type);
        constexpr int kWide = kPack<Out>;
        for (int64_t t = 0; t < p.num_tables; t += kTables) {
            const int64_t left = p.num_tables - t;
            const int64_t count = left < kTables ? left : kTables;
            Tables tables;
            bool wide = aligned16(p.out) && p.width % kWide == 0;
            int64_t most = 1;
            for (int64_t i = 0; i < count; ++i) {
                const Table& table = tables.at[i] = p.tables[t + i];
                wide = wide && allows(table, kWide);
                most = table.dim > most ? table.dim : most;
            }
            const int64_t packs = wide ? most / kWide : most;
            const int bags = static_cast<int>(packs < kThreads ? kThreads / packs : 1);
            launch("embedding_bag", wide ? forward_kernel<Out, kWide> : forward_kernel<Out, 1>,
                   dim3(blocks_for(p.batch, bags), static_cast<unsigned>(count)), kThreads, 0,
                   stream, tables, out, bags);
        }
    });
}

}  // namespace pylum::embedding_bag
