// What the checks of memory share: the pieces that kernels may touch, and what happened to each.
#pragma once

#include <vector>

#include "engines.h"

namespace emulator {

// Two bytes of memory: who wrote and who read last. Time is counted twice: in epochs, of which
// every block and every barrier of a whole block begins one, all in one line; and for each thread,
// in how often its warp met or it told others of what it had done.
struct Cell {
    uint32_t write_epoch = 0, write_time = 0, read_epoch = 0, read_time = 0;
    uint32_t readers = 0;  // 0: `reader` alone, else their number in the epoch's lists, plus 1
    uint32_t fences = 0;   // of the block when a thread wrote; 0: no thread, or seen by engines
    uint16_t writer = 0, reader = 0;
    bool atomic = false, in_flight = false, by_engine = false, barrier = false;
};
constexpr size_t kCell = 2;
constexpr int kGroup = 4 * kWarp;
// Of a tile, whose rows' 16-byte chunks are permuted by the address.
constexpr int kRowBytes = 128;
inline uint32_t permuted(uint32_t offset) { return offset ^ ((offset >> 7 & 7) << 4); }

struct Memory {
    uintptr_t begin = 0, end = 0;
    std::string name;
    std::vector<Cell> cells;
};

// Of the block that runs.
extern Memory shared;
// The thread that runs, -1 on the host, and its warp.
extern int thread, warp;

// reports.cpp: ends the launch; the place is `place`, or that of the code at `code`.
[[noreturn]] void report(const std::string& what, const void* at, size_t size, const Memory* in,
                         const void* code, const Place* place);

// bounds.cpp: the access lies in memory that the kernel was given, and is aligned.
void checked_access(const void* at, size_t size, Access kind, const void* code, const Place* place);

// races.cpp: the access is ordered after what other threads did to the same bytes.
void touch(Memory& m, uintptr_t at, size_t size, Access kind, const void* code, const Place* place);
// As touch(), of the eight bytes of a barrier with phases, which nothing else may touch from then
// on.
void touch_barrier(const void* barrier, Access kind, const Place& place);
// Bytes of a copy have come: by the thread that waits for its own, or by an engine, for those who
// know of its beginning.
void land(Cell& cell);
void land_tile(Cell& cell);
// For each thread of the block, up to when what it did is known.
using Clock = std::vector<uint32_t>;
// The running thread adds to the clock what it did and what its warp knows; the warp learns what
// the clock says.
void tell(Clock& clock);
void learn(const Clock& clock);
// These threads met: they know of each other.
void meet(const std::vector<int>& threads);
// What a thread wrote there last it has fenced, and the running thread knows of that.
bool seen_by_engines(const Cell& cell);
void begin_launch_epoch();
void begin_block_epoch();

// copies.cpp
void begin_copies();

// engines.cpp: what the thread waited for has happened.
void learn_phase(const void* barrier);

// products.cpp
void begin_products();
void end_products();

}  // namespace emulator
