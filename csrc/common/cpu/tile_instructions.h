// The tile instructions of AMX. Their assembly says that it touches memory, which the intrinsics of
// GCC 12 do not. tests/amx_emulator has the same names over memory: what includes this file has run
// on that one only, not yet on a CPU with AMX.
#pragma once

#include <cstdint>

namespace pylum {
namespace {

struct alignas(64) TileShapes {
    uint8_t palette, start_row, reserved[14];
    uint16_t row_bytes[16];
    uint8_t rows[16];
};
static_assert(sizeof(TileShapes) == 64);

inline void configure_tiles(const TileShapes& shapes) {
    asm volatile("ldtilecfg %0" ::"m"(shapes));
}
inline void release_tiles() { asm volatile("tilerelease" ::: "memory"); }

template <int kTile>
inline void zero_tile() {
    asm volatile("tilezero %%tmm%c0" ::"i"(kTile));
}

// Row i from rows + i * stride bytes.
template <int kTile>
inline void load_tile(const void* rows, int64_t stride) {
    asm volatile("tileloadd (%0,%1,1), %%tmm%c2" ::"r"(rows), "r"(stride), "i"(kTile) : "memory");
}
template <int kTile>
inline void store_tile(void* rows, int64_t stride) {
    asm volatile("tilestored %%tmm%c2, (%0,%1,1)" ::"r"(rows), "r"(stride), "i"(kTile) : "memory");
}

// c[i][j] += sum over u of a[i], pair u, times b[u], pair j: even and odd elements sum apart from
// zero, then together, then to c; each step rounded to nearest even, denormals taken for zero.
template <int kC, int kA, int kB>
inline void multiply_tiles() {
    asm volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(kC), "i"(kA), "i"(kB));
}

}  // namespace
}  // namespace pylum
