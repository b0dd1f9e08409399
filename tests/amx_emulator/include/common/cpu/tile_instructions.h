// The tile instructions over memory, with the checks that the hardware makes.
#pragma once

#include <cstdint>

namespace amx_emulator {

void configure(const void* shapes);
void release();
void zero(int tile);
void load(int tile, const void* rows, int64_t stride);
void store(int tile, void* rows, int64_t stride);
void multiply(int c, int a, int b);

}  // namespace amx_emulator

namespace pylum {
namespace {

struct alignas(64) TileShapes {
    uint8_t palette, start_row, reserved[14];
    uint16_t row_bytes[16];
    uint8_t rows[16];
};

inline void configure_tiles(const TileShapes& shapes) { amx_emulator::configure(&shapes); }
inline void release_tiles() { amx_emulator::release(); }
template <int kTile>
inline void zero_tile() {
    amx_emulator::zero(kTile);
}
template <int kTile>
inline void load_tile(const void* rows, int64_t stride) {
    amx_emulator::load(kTile, rows, stride);
}
template <int kTile>
inline void store_tile(void* rows, int64_t stride) {
    amx_emulator::store(kTile, rows, stride);
}
template <int kC, int kA, int kB>
inline void multiply_tiles() {
    amx_emulator::multiply(kC, kA, kB);
}

}  // namespace
}  // namespace pylum
