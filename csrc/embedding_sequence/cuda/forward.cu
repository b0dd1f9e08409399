// One thread per 16 bytes of output; a block takes the columns of whole tokens, of one table where
// they stand side by side. Reads each row and writes each element once: bound by random rows.
#include "common/cuda/embedding_table.h"
#include "common/cuda/launch.h"
#include "common/cuda/numeric.h"
#include "embedding_sequence/embedding_sequence.h"

namespace pylum::embedding_sequence {
namespace {

using namespace cuda;

constexpr int kThreads = 256;
constexpr int kItems = 4 * kThreads;  // of a block, about

struct Tables {
    Table at[kMostTables];
    Table position;
    int members;  // of a sum: consecutive tables that share columns
    bool has_position;
};

struct Output {
    void* data;
    int64_t total, width;
    int32_t* errors;
};

template <int kCount, typename T>
__device__ void add_floats(const T* from, bool first, float (&sums)[kCount]) {
    constexpr int kPiece = kCount < kPack<T> ? kCount : kPack<T>;
#pragma unroll
    for (int i = 0; i < kCount; i += kPiece) {
        const auto pack = load_pack<kPiece>(from + i);
#pragma unroll
        for (int j = 0; j < kPiece; ++j) {
            const float x = to_float(pack.at[j]);
            sums[i + j] = first ? x : sums[i + j] + x;
        }
    }
}

// Adds elements [from, from + kCount) of the table's row for token n.
template <int kCount>
__device__ void add_row(const Table& t, int64_t n, int64_t from, bool first, float (&sums)[kCount],
                        int32_t* errors) {
    const int64_t row = t.indices[n * t.indices_stride];
    if (row < 0 || row >= t.rows) {
        report_error(errors, kBadIndices);
#pragma unroll
        for (int i = 0; i < kCount; ++i) {
            sums[i] = quiet_nan();
        }
        return;
    }
    const int64_t at = row * t.stride + from;
    if (t.dtype == DType::kFloat32) {
        add_floats<kCount>(static_cast<const float*>(t.data) + at, first, sums);
    } else if (t.dtype == DType::kBFloat16) {
        add_floats<kCount>(static_cast<const __nv_bfloat16*>(t.data) + at, first, sums);
    } else {
        add_floats<kCount>(static_cast<const __half*>(t.data) + at, first, sums);
    }
}

template <typename Out, int kCount>
__device__ void run_item(const Tables& tables, const Output& out, int first_table, int64_t n,
                         int64_t from) {
    const Table& first = tables.at[first_table];
    const int64_t column = first.column + from;
    Out* to = static_cast<Out*>(out.data) + n * out.width + column;
    float sums[kCount];
    for (int m = 0; m < tables.members; ++m) {
        add_row<kCount>(tables.at[first_table + m], n, from, m == 0, sums, out.errors);
    }
    if (tables.has_position) {
        add_row<kCount>(tables.position, n, column, false, sums, out.errors);
    }
    Pack<Out, kCount> pack;
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
        pack.at[i] = from_float<Out>(sums[i]);
    }
    store_pack<kCount>(to, pack);
}

template <typename Out, int kCount>
__global__ void __launch_bounds__(kThreads)
    forward_kernel(const __grid_constant__ Tables tables, const Output out, int tokens_per_block) {
    const int first_table = static_cast<int>(blockIdx.y) * tables.members;
    const int packs = static_cast<int>(tables.at[first_table].dim / kCount);
    const int64_t step = static_cast<int64_t>(gridDim.x) * tokens_per_block;
    for (int64_t first = static_cast<int64_t>(blockIdx.x) * tokens_per_block; first < out.total;
         first += step) {
        const int64_t left = out.total - first;
        const int tokens = static_cast<int>(left < tokens_per_block ? left : tokens_per_block);
        for (int i = threadIdx.x; i < tokens * packs; i += kThreads) {
            run_item<Out, kCount>(tables, out, first_table, first + i / packs,
                                  static_cast<int64_t>(i % packs) * kCount);
        }
    }
}

}  // namespace

void launch_forward(const Params& p, cudaStream_t stream) {
    const int64_t members = p.sum ? p.num_tables : 1;
    const Output out{p.out, p.total, p.width, p.errors};
    for_dtype(p.out_dtype, [&](auto type) {
        using Out = decltype(type);
        constexpr int kWide = kPack<Out>;
        Tables tables;
        tables.members = static_cast<int>(members);
        tables.has_position = p.position != nullptr;
        if (p.position) {
            tables.position = *p.position;
        }
        for (int64_t t = 0; t < p.num_tables; t += kMostTables) {
            const int64_t left = p.num_tables - t;
            const int64_t count = left < kMostTables ? left : kMostTables;
            bool wide = aligned16(p.out) && p.width % kWide == 0 &&
                        (!p.position || allows(*p.position, kWide));
            int64_t most = 1;
            for (int64_t i = 0; i < count; ++i) {
                const Table& table = tables.at[i] = p.tables[t + i];
                wide = wide && allows(table, kWide);
                most = table.dim > most ? table.dim : most;
            }
            const int64_t packs = wide ? most / kWide : most;
            const int tokens = static_cast<int>(packs < kItems ? kItems / packs : 1);
            launch("embedding_sequence", wide ? forward_kernel<Out, kWide> : forward_kernel<Out, 1>,
                   dim3(blocks_for(p.total, tokens), static_cast<unsigned>(count / members)),
                   kThreads, 0, stream, tables, out, tokens);
        }
    });
}

}  // namespace pylum::embedding_sequence
