// Races: whether accesses of a launch are ordered, by barriers of blocks, of some warps and with
// phases, and by operations of warps.
#include <algorithm>

#include "memory.h"

namespace emulator {

int thread = -1, warp = 0;

namespace {

uint32_t epoch = 1, launch_epoch = 1, block_epoch = 1;
Clock times;               // what each thread does now happens then
std::vector<Clock> known;  // by each warp
// Each thread's fence_proxies(): when, and the block's count of them.
struct Fence {
    uint32_t count, epoch, time;
};
uint32_t fences = 1;
std::vector<Fence> thread_fences[1024];

// Several threads that read a cell in this epoch, not knowing of each other, and when.
struct Readers {
    static constexpr size_t kFew = 16;
    std::vector<std::pair<uint16_t, uint32_t>> few;
    Clock many;  // in the place of `few`, of all threads

    void clear() {
        few.clear();
        many.clear();
    }
    void add(uint16_t who, uint32_t when) {
        if (!many.empty()) {
            many[who] = when;
            return;
        }
        for (auto& [other, time] : few) {
            if (other == who) {
                time = when;
                return;
            }
        }
        few.emplace_back(who, when);
        if (few.size() > kFew) {
            many.assign(times.size(), 0);
            for (const auto& [other, time] : few) {
                many[other] = time;
            }
        }
    }
};
std::vector<Readers> lists;
uint32_t used_lists = 0;

void begin_epoch() {
    ++epoch;
    used_lists = 0;
}

bool knows(uint16_t who, uint32_t when) { return who == thread || when <= known[warp][who]; }

// True where what happened then is visible to the thread that runs now.
bool ordered(uint32_t then, uint32_t when, uint16_t who) {
    if (then < launch_epoch || then < block_epoch) {
        return then < launch_epoch;
    }
    return then < epoch || knows(who, when);
}

void note_read(Cell& c) {
    const auto own = static_cast<uint16_t>(thread);
    const uint32_t now = times[thread];
    if (c.read_epoch == epoch && c.readers) {
        lists[c.readers - 1].add(own, now);
        return;
    }
    if (c.read_epoch == epoch && !knows(c.reader, c.read_time)) {
        if (used_lists == lists.size()) {
            lists.emplace_back();
        }
        Readers& list = lists[used_lists++];
        list.clear();
        list.add(c.reader, c.read_time);
        list.add(own, now);
        c.readers = used_lists;
        return;
    }
    c.read_epoch = epoch;
    c.read_time = now;
    c.reader = own;
    c.readers = 0;
}

// A reader that the running thread does not know of, or -1.
int unknown_reader(const Cell& c) {
    if (c.read_epoch != epoch || !c.readers) {
        return ordered(c.read_epoch, c.read_time, c.reader) ? -1 : c.reader;
    }
    const Readers& list = lists[c.readers - 1];
    for (size_t i = 0; i < list.many.size(); ++i) {
        if (!knows(static_cast<uint16_t>(i), list.many[i])) {
            return static_cast<int>(i);
        }
    }
    for (const auto& [other, time] : list.few) {
        if (list.many.empty() && !knows(other, time)) {
            return other;
        }
    }
    return -1;
}

}  // namespace

void touch(Memory& m, uintptr_t at, size_t size, Access kind, const void* code,
           const Place* place) {
    if (m.cells.empty()) {
        m.cells.resize((m.end - m.begin + kCell - 1) / kCell + 1);
    }
    const auto who = [](uint32_t then, int other) {
        return then < block_epoch ? std::string("another block")
                                  : "thread " + std::to_string(other);
    };
    const size_t first = (at - m.begin) / kCell, stop = (at - m.begin + size + kCell - 1) / kCell;
    for (size_t i = first; i < stop; ++i) {
        Cell& c = m.cells[i];
        const auto* address = reinterpret_cast<const void*>(at);
        if (c.barrier) {
            report("access to a barrier:", address, size, &m, code, place);
        }
        if (c.in_flight && c.write_epoch >= block_epoch) {
            report("access to a copy in flight:", address, size, &m, code, place);
        }
        const bool both_atomic = kind == Access::kAtomic && c.atomic;
        const bool written =
            both_atomic ||
            (ordered(c.write_epoch, c.write_time, c.writer) &&
             !(c.by_engine && c.write_epoch == epoch && c.write_time > known[warp][c.writer]));
        if (!written) {
            report(std::string("race: ") + (kind == Access::kRead ? "read" : "write") +
                       " after a write by " + who(c.write_epoch, c.writer) +
                       " with no barrier between,",
                   address, size, &m, code, place);
        }
        if (kind == Access::kRead) {
            note_read(c);
            continue;
        }
        if (kind == Access::kWrite) {
            if (const int reader = unknown_reader(c); reader >= 0) {
                report("race: write after a read by " + who(c.read_epoch, reader) +
                           " with no barrier between,",
                       address, size, &m, code, place);
            }
        }
        c.write_epoch = epoch;
        c.write_time = times[thread];
        c.writer = static_cast<uint16_t>(thread);
        c.atomic = kind == Access::kAtomic;
        c.by_engine = false;
        c.fences = fences;
    }
}

void touch_barrier(const void* barrier, Access kind, const Place& place) {
    const auto at = reinterpret_cast<uintptr_t>(barrier);
    Cell* cells = &shared.cells[(at - shared.begin) / kCell];
    const auto mark = [&](bool on) {
        for (size_t i = 0; i < sizeof(uint64_t) / kCell; ++i) {
            cells[i].barrier = on;
        }
    };
    mark(false);
    touch(shared, at, sizeof(uint64_t), kind, nullptr, &place);
    mark(true);
}

void land(Cell& c) {
    c.in_flight = false;
    c.fences = fences;
    c.write_epoch = epoch;
    c.write_time = times[thread];
}

void land_tile(Cell& c) {
    c.in_flight = false;
    c.write_epoch = epoch;
}

void tell(Clock& clock) {
    clock.resize(times.size());
    for (size_t i = 0; i < clock.size(); ++i) {
        clock[i] = std::max(clock[i], known[warp][i]);
    }
    clock[thread] = std::max(clock[thread], times[thread]++);
}

void learn(const Clock& clock) {
    for (size_t i = 0; i < clock.size(); ++i) {
        known[warp][i] = std::max(known[warp][i], clock[i]);
    }
}

void meet(const std::vector<int>& threads) {
    Clock all(times.size());
    for (size_t i = 0; i < threads.size(); ++i) {
        const int t = threads[i];
        if (i == 0 || t / kWarp != threads[i - 1] / kWarp) {
            for (size_t j = 0; j < all.size(); ++j) {
                all[j] = std::max(all[j], known[t / kWarp][j]);
            }
        }
        all[t] = std::max(all[t], times[t]++);
    }
    for (const int t : threads) {
        known[t / kWarp] = all;
    }
}

bool seen_by_engines(const Cell& c) {
    if (c.fences == 0) {
        return true;
    }
    const std::vector<Fence>& all = thread_fences[c.writer];
    const auto next = std::upper_bound(all.begin(), all.end(), c.fences,
                                       [](uint32_t n, const Fence& f) { return n < f.count; });
    return next != all.end() && ordered(next->epoch, next->time, c.writer);
}

void fence_proxies() {
    const Outside outside;
    thread_fences[thread].push_back({++fences, epoch, times[thread]});
}

void begin_launch_epoch() {
    begin_epoch();
    launch_epoch = epoch;
}

void begin_block_epoch() {
    begin_epoch();
    block_epoch = epoch;
    const size_t threads = static_cast<size_t>(blockDim.x) * blockDim.y * blockDim.z;
    times.assign(threads, 1);
    known.assign((threads + kWarp - 1) / kWarp, Clock(threads));
    for (size_t i = 0; i < threads; ++i) {
        thread_fences[i].clear();
    }
}

void begin_thread(int number, int its_warp) {
    thread = number;
    warp = its_warp;
}

void next_block_epoch() { begin_epoch(); }

void next_warp_epoch(int its_warp) {
    const size_t first = static_cast<size_t>(its_warp) * kWarp;
    for (size_t i = first; i < std::min(first + kWarp, times.size()); ++i) {
        known[its_warp][i] = times[i]++;
    }
}

}  // namespace emulator
