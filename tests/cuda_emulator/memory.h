// What the checks of memory share: the pieces that kernels may touch, and what happened to each.
#pragma once

#include <vector>

#include "engines.h"

namespace emulator {

// Two bytes of memory: who wrote and who read last. Time is counted in epochs: every barrier of a
// block begins one, so does every block, and within it every operation of a warp begins one of the
// warp's own. Blocks run one after another, so the epochs of the launch are one line.
struct Cell {
    uint32_t write_epoch = 0, write_warp_epoch = 0, read_epoch = 0, read_warp_epoch = 0;
    uint32_t fences = 0;  // of the block when a thread wrote; 0: no thread, or seen by engines
    uint16_t writer = 0, reader = 0;
    bool atomic = false, in_flight = false, read_by_lanes = false, read_by_warps = false;
};
constexpr size_t kCell = 2;

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
// Bytes of a copy have come.
void land(Cell& cell);
bool seen_by_engines(const Cell& cell);
void begin_launch_epoch();
void begin_block_epoch();

// copies.cpp
void begin_copies();

}  // namespace emulator
