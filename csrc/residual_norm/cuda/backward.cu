// One block per kCudaChunk rows, a warp per row: each element is read once or, with dnormed, again
// from the cache. A warp sums its rows' part of dweight in shared memory; the warps' parts, then
// the blocks', are added in their order. Bound by memory.
#include "common/cuda/shared.h"
#include "residual_norm/cuda/rows.h"

namespace pylum::residual_norm {
namespace {

constexpr int kMostWarps = 8;
// Blocks of a multiprocessor: left alone, ptxas keeps to 48 registers and spills.
constexpr int kBlocks = 4;
constexpr int64_t kSharedBytes = 96 << 10;
constexpr int kColumns = 32;  // of a block that adds parts
constexpr int kAdders = 16;   // threads of a column

struct AddedParts {
    float sums[kAdders][kColumns];
};

template <typename T, int kCount>
__device__ void backward_row(const Backward& p, int64_t row, float* dweight) {
    const int lane = static_cast<int>(threadIdx.x) % kWarp;
    const int64_t begin = row * p.width;
    const T* dsum = p.dsum ? static_cast<const T*>(p.dsum) + begin : nullptr;
    const T* dnormed = p.dnormed ? static_cast<const T*>(p.dnormed) + begin : nullptr;
    const T* sum_row = static_cast<const T*>(p.sum) + begin;
    const T* weight = static_cast<const T*>(p.weight);
    const RowDropout dropout(p.dropout, row);
    const float scale = p.scales[row];
    float dots = 0.0f;
    for (int64_t at = lane * kCount; dnormed && at < p.width; at += kWarp * kCount) {
        const auto s = load_pack<kCount>(sum_row + at);
        const auto d = load_pack<kCount>(dnormed + at);
        const auto w = load_pack<kCount>(weight + at);
#pragma unroll
        for (int i = 0; i < kCount; ++i) {
            const float unit = to_float(s.at[i]) * scale, dn = to_float(d.at[i]);
            dots += dn * to_float(w.at[i]) * unit;
            dweight[at + i] += dn * unit;
        }
    }
    const float shared = sum_of_lanes(dots) / static_cast<float>(p.width);
    for (int64_t at = lane * kCount; at < p.width; at += kWarp * kCount) {
        const auto s = load_pack<kCount>(sum_row + at);
        const auto w = load_pack<kCount>(weight + at);
        const auto dn = load_or_zeros<kCount>(dnormed, at);
        const auto ds = load_or_zeros<kCount>(dsum, at);
        Pack<T, kCount> to_residual, to_branch;
#pragma unroll
        for (int i = 0; i < kCount; ++i) {
            const float unit = to_float(s.at[i]) * scale;
            float d = 0.0f;
            if (dnormed) {
                d = (to_float(dn.at[i]) * to_float(w.at[i]) - unit * shared) * scale;
            }
            d += to_float(ds.at[i]);
            to_residual.at[i] = from_float<T>(d);
            to_branch.at[i] = from_float<T>(dropout(d, at + i));
        }
        store_pack<kCount>(static_cast<T*>(p.dresidual) + begin + at, to_residual);
        if (p.dbranch) {
            store_pack<kCount>(static_cast<T*>(p.dbranch) + begin + at, to_branch);
        }
    }
}

template <typename T, int kCount>
__global__ void __launch_bounds__(kMostWarps* kWarp, kBlocks) backward_kernel(const Backward p) {
    PYLUM_SHARED(float, shared);
    float* dweights = &shared;  // [warps, width]
    const int warps = static_cast<int>(blockDim.x) / kWarp;
    const int warp = static_cast<int>(threadIdx.x) / kWarp;
    const int64_t chunks = (p.rows + kCudaChunk - 1) / kCudaChunk;
    for (int64_t chunk = blockIdx.x; chunk < chunks; chunk += gridDim.x) {
        for (int64_t i = threadIdx.x; i < warps * p.width; i += blockDim.x) {
            dweights[i] = 0.0f;
        }
        __syncthreads();
        const int64_t end = min((chunk + 1) * kCudaChunk, p.rows);
        for (int64_t row = chunk * kCudaChunk + warp; row < end; row += warps) {
            backward_row<T, kCount>(p, row, dweights + warp * p.width);
        }
        __syncthreads();
        for (int64_t i = threadIdx.x; i < p.width; i += blockDim.x) {
            float sum = 0.0f;
            for (int w = 0; w < warps; ++w) {
                sum += dweights[w * p.width + i];
            }
            p.dweight_parts[chunk * p.width + i] = sum;
        }
        __syncthreads();
    }
}

__global__ void __launch_bounds__(kColumns* kAdders) add_parts_kernel(const Backward p) {
    PYLUM_SHARED(AddedParts, parts);
    const int column = static_cast<int>(threadIdx.x) % kColumns;
    const int adder = static_cast<int>(threadIdx.x) / kColumns;
    const int64_t at = static_cast<int64_t>(blockIdx.x) * kColumns + column;
    const int64_t chunks = (p.rows + kCudaChunk - 1) / kCudaChunk;
    float sum = 0.0f;
    for (int64_t c = adder; c < chunks && at < p.width; c += kAdders) {
        sum += p.dweight_parts[c * p.width + at];
    }
    parts.sums[adder][column] = sum;
    __syncthreads();
    if (adder == 0 && at < p.width) {
        for (int other = 1; other < kAdders; ++other) {
            sum += parts.sums[other][column];
        }
        p.dweight[at] = sum;
    }
}

}  // namespace

void launch_backward(const Backward& p, cudaStream_t stream) {
    int64_t warps = kMostWarps;
    while (warps > 1 && warps * p.width * 4 > kSharedBytes) {
        warps /= 2;
    }
    for_dtype(p.dtype, [&](auto type) {
        using T = decltype(type);
        const bool wide = p.width % kPack<T> == 0 && aligned16(p.dsum) && aligned16(p.dnormed) &&
                          aligned16(p.sum) && aligned16(p.weight) && aligned16(p.dresidual) &&
                          aligned16(p.dbranch);
        launch("residual_norm backward",
               wide ? backward_kernel<T, kPack<T>> : backward_kernel<T, 1>,
               dim3(blocks_for(p.rows, kCudaChunk)), static_cast<unsigned>(warps * kWarp),
               static_cast<size_t>(warps * p.width * 4), stream, p);
    });
    launch("residual_norm dweight", add_parts_kernel, dim3(blocks_for(p.width, kColumns)),
           kColumns * kAdders, sizeof(AddedParts), stream, p);
}

}  // namespace pylum::residual_norm
