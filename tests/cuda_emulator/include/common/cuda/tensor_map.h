// csrc/common/cuda/tensor_map.h on the emulator: the tensor in plain numbers.
#pragma once

#include <cstdint>

#include "engines.h"

namespace pylum::cuda {

struct TensorMap {
    const char* at;
    int64_t dims[3], bytes[3];  // bytes from one element of a dimension to the next
    int box_rows;
};

inline bool has_sm90() { return emulator::sm90; }

inline bool encode_map(TensorMap* map, const void* at, const int64_t (&dims)[3],
                       const int64_t (&strides)[3], int box_rows) {
    *map = {static_cast<const char*>(at), {}, {}, box_rows};
    bool fits = reinterpret_cast<uintptr_t>(at) % 16 == 0;
    for (int i = 0; i < 3; ++i) {
        map->dims[i] = dims[i];
        map->bytes[i] = 2 * strides[i];
        fits = fits && dims[i] >= 1 && dims[i] <= UINT32_MAX && strides[i] >= 1 &&
               (i == 0 || map->bytes[i] % 16 == 0);
    }
    return fits;
}

}  // namespace pylum::cuda
