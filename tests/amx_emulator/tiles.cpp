// Palette 1 of AMX: eight tiles of up to 16 rows of up to 64 bytes for each thread. Outside a
// configuration, and before a tile is first written, they hold NaN.
#include <immintrin.h>

#include <atomic>
#include <cstring>
#include <mutex>
#include <utility>

#include "common/cpu/tile_instructions.h"
#include "emulator.h"

namespace amx_emulator {
namespace {

constexpr int kTiles = 8, kRows = 16, kRowBytes = 64;

struct Tile {
    int rows, row_bytes;
    alignas(64) uint8_t data[kRows][kRowBytes];
};

struct Registers {
    bool configured = false;
    Tile tiles[kTiles];
};

thread_local Registers registers;
std::atomic<int64_t> products, loads, stores;
std::mutex lock;
std::string first_fault;

void fault(const std::string& what) {
    const std::lock_guard<std::mutex> guard(lock);
    if (first_fault.empty()) {
        first_fault = what;
    }
}

void poison() {
    for (Tile& tile : registers.tiles) {
        memset(tile.data, 0xff, sizeof(tile.data));
    }
}

bool usable(const char* instruction, std::initializer_list<int> tiles) {
    if (!registers.configured) {
        fault(std::string(instruction) + " without a configuration");
        return false;
    }
    for (int tile : tiles) {
        if (tile < 0 || tile >= kTiles || registers.tiles[tile].rows == 0) {
            fault(std::string(instruction) + " of tile " + std::to_string(tile) +
                  ", which has no rows");
            return false;
        }
    }
    return true;
}

// Even and odd elements sum apart. The arithmetic runs between the changes of MXCSR.
__attribute__((noinline)) void multiply_rows(Tile& c, const Tile& a, const Tile& b) {
    const __mmask16 columns = static_cast<__mmask16>((1u << (c.row_bytes / 4)) - 1u);
    for (int i = 0; i < c.rows; ++i) {
        __m512 even = _mm512_setzero_ps(), odd = _mm512_setzero_ps();
        for (int u = 0; u < a.row_bytes / 4; ++u) {
            uint32_t pair;
            memcpy(&pair, a.data[i] + 4 * u, 4);
            const __m512i right = _mm512_load_si512(b.data[u]);
            const __m512i left = _mm512_set1_epi32(static_cast<int>(pair));
            const __m512i high = _mm512_set1_epi32(static_cast<int>(0xffff0000u));
            even = _mm512_fmadd_ps(_mm512_castsi512_ps(_mm512_slli_epi32(left, 16)),
                                   _mm512_castsi512_ps(_mm512_slli_epi32(right, 16)), even);
            odd = _mm512_fmadd_ps(_mm512_castsi512_ps(_mm512_and_si512(left, high)),
                                  _mm512_castsi512_ps(_mm512_and_si512(right, high)), odd);
        }
        const __m512 sum = _mm512_add_ps(_mm512_load_ps(c.data[i]), _mm512_add_ps(even, odd));
        memset(c.data[i], 0, kRowBytes);
        _mm512_mask_store_ps(c.data[i], columns, sum);
    }
}

}  // namespace

void configure(const void* shapes) {
    const auto& wanted = *static_cast<const pylum::TileShapes*>(shapes);
    if (registers.configured) {
        fault("a configuration within another");
    }
    if (wanted.palette != 1 || wanted.start_row != 0) {
        fault("a configuration of palette " + std::to_string(wanted.palette));
        return;
    }
    for (int tile = 0; tile < 16; ++tile) {
        const int rows = wanted.rows[tile], bytes = wanted.row_bytes[tile];
        const bool valid = tile < kTiles ? rows <= kRows && bytes <= kRowBytes && !rows == !bytes
                                         : rows == 0 && bytes == 0;
        if (!valid) {
            fault("tile " + std::to_string(tile) + " of " + std::to_string(rows) + " rows of " +
                  std::to_string(bytes) + " bytes");
            return;
        }
        if (tile < kTiles) {
            registers.tiles[tile].rows = rows;
            registers.tiles[tile].row_bytes = bytes;
        }
    }
    registers.configured = true;
    poison();
}

void release() {
    usable("tilerelease", {});
    registers.configured = false;
    poison();
}

void zero(int tile) {
    if (usable("tilezero", {tile})) {
        memset(registers.tiles[tile].data, 0, sizeof(Tile::data));
    }
}

void load(int tile, const void* rows, int64_t stride) {
    loads.fetch_add(1, std::memory_order_relaxed);
    if (!usable("tileloadd", {tile})) {
        return;
    }
    Tile& t = registers.tiles[tile];
    memset(t.data, 0, sizeof(t.data));
    for (int i = 0; i < t.rows; ++i) {
        memcpy(t.data[i], static_cast<const char*>(rows) + i * stride, t.row_bytes);
    }
}

void store(int tile, void* rows, int64_t stride) {
    stores.fetch_add(1, std::memory_order_relaxed);
    if (!usable("tilestored", {tile})) {
        return;
    }
    const Tile& t = registers.tiles[tile];
    for (int i = 0; i < t.rows; ++i) {
        memcpy(static_cast<char*>(rows) + i * stride, t.data[i], t.row_bytes);
    }
}

void multiply(int c, int a, int b) {
    products.fetch_add(1, std::memory_order_relaxed);
    if (!usable("tdpbf16ps", {c, a, b})) {
        return;
    }
    Tile &sum = registers.tiles[c], &left = registers.tiles[a], &right = registers.tiles[b];
    if (c == a || c == b || a == b || sum.rows != left.rows || sum.row_bytes != right.row_bytes ||
        left.row_bytes != 4 * right.rows || left.row_bytes % 4 != 0 || right.row_bytes % 4 != 0) {
        fault("tdpbf16ps of tiles " + std::to_string(c) + ", " + std::to_string(a) + ", " +
              std::to_string(b) + ", whose shapes do not fit");
        memset(sum.data, 0xff, sizeof(sum.data));
        return;
    }
    constexpr unsigned kNearestFlushed = 0x1f80u | 0x8040u;
    const unsigned before = _mm_getcsr();
    _mm_setcsr(kNearestFlushed);
    multiply_rows(sum, left, right);
    _mm_setcsr(before);
}

Counts take_counts() { return {products.exchange(0), loads.exchange(0), stores.exchange(0)}; }

std::string take_fault() {
    const std::lock_guard<std::mutex> guard(lock);
    return std::exchange(first_fault, "");
}

}  // namespace amx_emulator
