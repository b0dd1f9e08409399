// What the gathers of embedding_bag and embedding_sequence ask of a table on the host.
#pragma once

#include "common/cuda/numeric.h"

namespace pylum::cuda {

// Whether every row of the table, and its place in the output, allow accesses of `count` elements.
template <typename Table>
bool allows(const Table& t, int64_t count) {
    const int64_t size = t.dtype == DType::kFloat32 ? 4 : 2;
    return aligned16(t.data) && t.stride * size % 16 == 0 && t.dim % count == 0 &&
           t.column % count == 0;
}

}  // namespace pylum::cuda
