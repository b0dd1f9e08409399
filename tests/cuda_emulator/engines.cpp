// The engine of sm_90 that copies tiles, its barriers with phases, and registers on loan.
#include <algorithm>
#include <cstring>
#include <map>
#include <stdexcept>
#include <vector>

#include "memory.h"

namespace emulator {

bool sm90 = false;
int64_t copied_tiles = 0;

namespace {

struct Landing {
    unsigned char* to;
    Box box;
    int64_t dims[3], bytes[3];
};

struct Phase {
    unsigned count = 0, left = 0, number = 0;
    int maker = 0;
    bool fenced = false;  // seen by the engine
    int64_t bytes = 0;    // still to come
    std::vector<Landing> landings;
    Clock told, ended;  // by those who arrived so far; when the last phase ended
};

std::map<const void*, Phase> phases;
int registers[1024];  // of each thread, 0 where it has not changed them

Phase& phase_of(const void* barrier, const Place& place) {
    const auto found = phases.find(barrier);
    if (found == phases.end()) {
        fail_at("a barrier that no thread has made,", place);
    }
    touch_barrier(barrier, Access::kRead, place);
    return found->second;
}

void land(Phase& phase) {
    for (const Landing& l : phase.landings) {
        const int64_t y = l.box.first[1];
        for (int row = 0; row < l.box.rows; ++row) {
            const int64_t z = l.box.first[2] + row;
            const bool inside = y >= 0 && y < l.dims[1] && z >= 0 && z < l.dims[2];
            for (int column = 0; column < kRowBytes / 2; ++column) {
                const int64_t x = l.box.first[0] + column;
                uint16_t value = 0;
                if (inside && x >= 0 && x < l.dims[0]) {
                    memcpy(&value, l.box.at + x * 2 + y * l.bytes[1] + z * l.bytes[2], 2);
                }
                memcpy(l.to + permuted(row * kRowBytes + column * 2), &value, 2);
            }
        }
        end_tile_write(l.to, l.box.rows * kRowBytes);
        phase.bytes -= l.box.rows * kRowBytes;
    }
    phase.landings.clear();
}

void try_to_end(Phase& phase) {
    if (phase.left == 0 && phase.bytes == 0) {
        ++phase.number;
        phase.left = phase.count;
        phase.ended = phase.told;
    }
}

}  // namespace

void phase_init(const void* barrier, unsigned count, const Place& place) {
    const Outside outside;
    shared_offset(barrier, place);
    touch_barrier(barrier, Access::kWrite, place);
    Phase phase;
    phase.count = phase.left = count;
    phase.maker = thread;
    phases[barrier] = phase;
}

void fence_barriers() {
    for (auto& [barrier, phase] : phases) {
        phase.fenced = phase.fenced || phase.maker == thread;
    }
}

void phase_arrive(const void* barrier, unsigned bytes, const Place& place) {
    const Outside outside;
    Phase& phase = phase_of(barrier, place);
    if (phase.left == 0) {
        fail_at("more threads arrive at a barrier than its phase has,", place);
    }
    --phase.left;
    phase.bytes += bytes;
    tell(phase.told);
    try_to_end(phase);
}

void begin_phase_wait(const void* barrier, const Place& place) { phase_of(barrier, place); }

bool phase_ended(const void* barrier, unsigned parity) {
    const auto found = phases.find(barrier);
    Phase& phase = found->second;
    if (phase.number % 2 == parity) {
        land(phase);
        try_to_end(phase);
    }
    return phase.number % 2 != parity;
}

void learn_phase(const void* barrier) { learn(phases.at(barrier).ended); }

void copy_tile(void* to, const Box& box, const void* barrier, const Place& place) {
    const Outside outside;
    Phase& phase = phase_of(barrier, place);
    if (!phase.fenced) {
        fail_at("the engine sees no barrier that was made with no fence_barriers() after it,",
                place);
    }
    Landing landing{static_cast<unsigned char*>(to), box, {}, {}};
    memcpy(landing.dims, box.dims, sizeof landing.dims);
    memcpy(landing.bytes, box.bytes, sizeof landing.bytes);
    const int64_t first = std::max(box.first[0], 0);
    const int64_t columns = std::min<int64_t>(box.first[0] + kRowBytes / 2, box.dims[0]) - first;
    for (int row = 0; row < box.rows; ++row) {
        const int64_t z = box.first[2] + row;
        if (columns > 0 && z >= 0 && z < box.dims[2] && box.first[1] >= 0 &&
            box.first[1] < box.dims[1]) {
            in_kernel = true;
            access(box.at + first * 2 + box.first[1] * box.bytes[1] + z * box.bytes[2],
                   static_cast<size_t>(columns) * 2, Access::kRead, place);
            in_kernel = false;
        }
    }
    begin_tile_write(to, static_cast<size_t>(box.rows) * kRowBytes, place);
    tell(phase.told);
    phase.landings.push_back(landing);
    ++copied_tiles;
}

void set_registers(int count, bool more, const Place& place) {
    const Outside outside;
    int& own = registers[thread];
    if (own && more != (count > own)) {
        fail_at("registers change the other way,", place);
    }
    own = count;
}

void begin_engines() {
    phases.clear();
    memset(registers, 0, sizeof registers);
    begin_products();
}

void end_engines() {
    for (const auto& [barrier, phase] : phases) {
        if (!phase.landings.empty()) {
            throw std::runtime_error("a block ended with a copy of a tile nobody waited for");
        }
    }
    end_products();
    // A block is given as many registers as its threads can have, and lends no others.
    const int count = static_cast<int>(blockDim.x * blockDim.y * blockDim.z);
    const int given = std::min(65536 / count, 255) / 8 * 8;
    int64_t taken = 0;
    for (int t = 0; t < count; ++t) {
        if (registers[t] != registers[t / kGroup * kGroup]) {
            throw std::runtime_error("threads of a warpgroup ended with other registers each");
        }
        taken += registers[t] ? registers[t] : given;
    }
    if (taken > int64_t{given} * count) {
        throw std::runtime_error("a block took more registers than it gave back");
    }
}

}  // namespace emulator
