// Lookups of all uses as one sorted array of (row, gradient row), gradient rows counted over all
// uses.
#pragma once

#include "common/cuda/launch.h"
#include "common/cuda/numeric.h"
#include "common/cuda/sort.h"
#include "row_wise/row_wise.h"

namespace pylum::row_wise {
namespace {

using namespace cuda;

constexpr int kThreads = 256;
constexpr int kWarp = 32;
constexpr int kWarps = kThreads / kWarp;
// One thread per lookup of a use. A bad lookup gets the row past the last one: it sorts behind the
// others and nobody looks at it.
__global__ void __launch_bounds__(kThreads)
    key_kernel(const Use use, uint64_t* keys, uint64_t first_grad_row, int64_t rows, int shift,
               int32_t* errors) {
    const int64_t step = static_cast<int64_t>(gridDim.x) * kThreads;
    for (int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; i < use.lookups;
         i += step) {
        int64_t row = use.indices[i * use.indices_stride], grad_row = i;
        if (row < 0 || row >= rows) {
            report_error(errors, kBadIndices);
            row = rows;
        }
        if (use.offsets) {
            // The last bag that begins at or before i; offsets that decrease lead anywhere inside.
            int64_t above = use.grad_rows;
            for (grad_row = 0; above - grad_row > 1;) {
                const int64_t middle = grad_row + (above - grad_row) / 2;
                (use.offsets[middle] <= i ? grad_row : above) = middle;
            }
            if (use.grad_rows == 0 || use.offsets[grad_row] > i || use.offsets[grad_row + 1] <= i) {
                report_error(errors, kBadOffsets);
                row = rows;
                grad_row = 0;
            }
        }
        const uint64_t below = row < rows ? first_grad_row + static_cast<uint64_t>(grad_row) : 0;
        keys[i] = static_cast<uint64_t>(row) << shift | below;
    }
}

struct Sorted {
    const uint64_t* keys;
    int64_t lookups;
    int shift;
};

Sorted sort_lookups(const Params& p, cudaStream_t stream) {
    int64_t lookups = 0, grad_rows = 0;
    for (int64_t u = 0; u < p.num_uses; ++u) {
        lookups += p.uses[u].lookups;
        grad_rows += p.uses[u].grad_rows;
    }
    const int shift = bits_for(grad_rows);
    uint64_t* keys = p.words;
    uint64_t first_grad_row = 0;
    for (int64_t u = 0; u < p.num_uses; ++u) {
        const Use& use = p.uses[u];
        launch("row_wise keys", key_kernel, dim3(blocks_for(use.lookups, kThreads)), kThreads, 0,
               stream, use, keys, first_grad_row, p.rows, shift, p.errors);
        keys += use.lookups;
        first_grad_row += static_cast<uint64_t>(use.grad_rows);
    }
    const uint64_t* sorted =
        launch_sort(p.words, lookups, shift, shift + bits_for(p.rows + 1), stream);
    return {sorted, lookups, shift};
}

}  // namespace
}  // namespace pylum::row_wise
