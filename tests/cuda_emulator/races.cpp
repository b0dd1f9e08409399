// Races: whether accesses of a launch are ordered, by barriers of blocks and operations of warps.
#include <cstring>

#include "memory.h"

namespace emulator {

int thread = -1, warp = 0;

namespace {

uint32_t epoch = 1, launch_epoch = 1, block_epoch = 1;
uint32_t warp_epoch[32];
uint32_t fences = 1, thread_fence[1024];  // the block's count, and at each thread's last one

// True where what happened then is visible to the thread that runs now.
bool ordered(uint32_t then, uint32_t then_warp, uint16_t who) {
    if (then < launch_epoch || then < block_epoch) {
        return then < launch_epoch;
    }
    return then < epoch || who == thread || (who / kWarp == warp && then_warp < warp_epoch[warp]);
}

}  // namespace

void touch(Memory& m, uintptr_t at, size_t size, Access kind, const void* code,
           const Place* place) {
    if (m.cells.empty()) {
        m.cells.resize((m.end - m.begin + kCell - 1) / kCell + 1);
    }
    const auto who = [](uint32_t then, uint16_t other) {
        return then < block_epoch ? std::string("another block")
                                  : "thread " + std::to_string(other);
    };
    const size_t first = (at - m.begin) / kCell, stop = (at - m.begin + size + kCell - 1) / kCell;
    for (size_t i = first; i < stop; ++i) {
        Cell& c = m.cells[i];
        const auto* address = reinterpret_cast<const void*>(at);
        if (c.in_flight && c.write_epoch >= block_epoch) {
            report("access to a copy in flight:", address, size, &m, code, place);
        }
        const bool both_atomic = kind == Access::kAtomic && c.atomic;
        if (!both_atomic && !ordered(c.write_epoch, c.write_warp_epoch, c.writer)) {
            report(std::string("race: ") + (kind == Access::kRead ? "read" : "write") +
                       " after a write by " + who(c.write_epoch, c.writer) +
                       " with no barrier between,",
                   address, size, &m, code, place);
        }
        if (kind == Access::kRead) {
            const bool fresh = c.read_epoch != epoch;
            const bool same_warp = c.reader / kWarp == warp;
            c.read_by_warps = !fresh && (c.read_by_warps || !same_warp);
            // Reads of this warp before its last barrier are ordered before what it does now.
            c.read_by_lanes = !fresh && same_warp && c.read_warp_epoch == warp_epoch[warp] &&
                              (c.read_by_lanes || c.reader != thread);
            c.read_epoch = epoch;
            c.read_warp_epoch = warp_epoch[warp];
            c.reader = static_cast<uint16_t>(thread);
            continue;
        }
        if (kind == Access::kWrite) {
            bool fine = ordered(c.read_epoch, c.read_warp_epoch, c.reader);
            if (fine && c.read_epoch == epoch) {
                fine =
                    !c.read_by_warps && (!c.read_by_lanes || c.read_warp_epoch < warp_epoch[warp]);
            }
            if (!fine) {
                report("race: write after a read by " + who(c.read_epoch, c.reader) +
                           " with no barrier between,",
                       address, size, &m, code, place);
            }
        }
        c.write_epoch = epoch;
        c.write_warp_epoch = warp_epoch[warp];
        c.writer = static_cast<uint16_t>(thread);
        c.atomic = kind == Access::kAtomic;
        c.fences = fences;
    }
}

void land(Cell& c) {
    c.in_flight = false;
    c.write_epoch = epoch;
    c.write_warp_epoch = warp_epoch[warp];
}

bool seen_by_engines(const Cell& c) { return c.fences < thread_fence[c.writer] || c.fences == 0; }

void fence_proxies() { thread_fence[thread] = ++fences; }

void begin_launch_epoch() { launch_epoch = ++epoch; }

void begin_block_epoch() {
    block_epoch = ++epoch;
    memset(warp_epoch, 0, sizeof warp_epoch);
    memset(thread_fence, 0, sizeof thread_fence);
}

void begin_thread(int number, int its_warp) {
    thread = number;
    warp = its_warp;
}

void next_block_epoch() { ++epoch; }
void next_warp_epoch(int its_warp) { ++warp_epoch[its_warp]; }

}  // namespace emulator
