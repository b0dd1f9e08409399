// The registers of AMX as its users here take them: eight tiles of 16 rows by 64 bytes.
#pragma once

#include "common/cpu/tile_instructions.h"

namespace pylum {
namespace {

// A product adds 16 rows by 16 columns over a depth of 32 bfloat16, or 16 pairs.
constexpr int kProductRows = 16;
constexpr int kProductDepth = 32;
constexpr int kProductPairs = 16;

// While one lives, its thread may use tiles; what they hold at first is of no meaning.
class TileRegisters {
  public:
    TileRegisters() {
        TileShapes shapes{};
        shapes.palette = 1;
        for (int tile = 0; tile < 8; ++tile) {
            shapes.row_bytes[tile] = 64;
            shapes.rows[tile] = kProductRows;
        }
        configure_tiles(shapes);
    }
    ~TileRegisters() { release_tiles(); }
    TileRegisters(const TileRegisters&) = delete;
    TileRegisters& operator=(const TileRegisters&) = delete;
};

}  // namespace
}  // namespace pylum
