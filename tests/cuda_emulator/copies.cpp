// Copies to shared memory that are under way: their destination is NaN and must not be touched.
#include <cstring>
#include <stdexcept>

#include "memory.h"

namespace emulator {
namespace {

struct Copy {
    unsigned char* to;
    const unsigned char* from;
    size_t size, valid;
};

struct Thread {
    std::vector<Copy> open;
    std::vector<std::vector<Copy>> committed;
};

std::vector<Thread> threads;

void check_seen(const Cell& cell, const void* at, size_t size, const Place& place) {
    if (!seen_by_engines(cell)) {
        report("a tile written by thread " + std::to_string(cell.writer) +
                   " with no fence_proxies() after it that a barrier follows:",
               at, size, &shared, nullptr, &place);
    }
}

}  // namespace

void copy_async(void* to, const void* from, size_t size, size_t valid, const Place& place) {
    const Outside outside;
    for (const void* p : {static_cast<const void*>(to), from}) {
        if (reinterpret_cast<uintptr_t>(p) % size != 0 && (p == to || valid > 0)) {
            report("misaligned: cp.async", p, size, nullptr, nullptr, &place);
        }
    }
    const auto at = reinterpret_cast<uintptr_t>(to);
    if (at < shared.begin || at + size > shared.end) {
        report("cp.async outside shared memory:", to, size, nullptr, nullptr, &place);
    }
    if (valid > 0) {
        checked_access(from, valid, Access::kRead, nullptr, &place);
    }
    checked_access(to, size, Access::kWrite, nullptr, &place);
    memset(to, 0xff, size);
    for (size_t i = (at - shared.begin) / kCell; i < (at - shared.begin + size) / kCell; ++i) {
        shared.cells[i].in_flight = true;
    }
    threads[thread].open.push_back(
        {static_cast<unsigned char*>(to), static_cast<const unsigned char*>(from), size, valid});
}

void copy_async_commit() {
    const Outside outside;
    Thread& t = threads[thread];
    t.committed.push_back(std::move(t.open));
    t.open.clear();
}

void copy_async_wait(int groups_left) {
    const Outside outside;
    auto& committed = threads[thread].committed;
    while (static_cast<int>(committed.size()) > groups_left) {
        for (const Copy& copy : committed.front()) {
            memset(copy.to, 0, copy.size);
            memcpy(copy.to, copy.from, copy.valid);
            const size_t at = reinterpret_cast<uintptr_t>(copy.to) - shared.begin;
            for (size_t i = at / kCell; i < (at + copy.size) / kCell; ++i) {
                land(shared.cells[i]);
            }
        }
        committed.erase(committed.begin());
    }
}

uint32_t shared_offset(const void* at, const Place& place) {
    const Outside outside;
    const auto address = reinterpret_cast<uintptr_t>(at);
    if (address < shared.begin || address >= shared.end) {
        report("a tile outside shared memory:", at, 1, nullptr, nullptr, &place);
    }
    return static_cast<uint32_t>(address - shared.begin);
}

void begin_tile_write(void* to, size_t size, const Place& place) {
    const auto at = reinterpret_cast<uintptr_t>(to);
    if (at < shared.begin || at + size > shared.end) {
        report("a tile outside shared memory:", to, size, nullptr, nullptr, &place);
    }
    if ((at - shared.begin) % 1024 != 0) {
        report("misaligned: a tile", to, size, &shared, nullptr, &place);
    }
    Cell* cells = &shared.cells[(at - shared.begin) / kCell];
    for (size_t i = 0; i < size / kCell; ++i) {
        check_seen(cells[i], to, size, place);
    }
    touch(shared, at, size, Access::kWrite, nullptr, &place);
    memset(to, 0xff, size);
    for (size_t i = 0; i < size / kCell; ++i) {
        Cell& c = cells[i];
        c.in_flight = true;
        c.by_engine = true;
        c.fences = 0;
    }
}

void end_tile_write(void* to, size_t size) {
    const size_t first = (reinterpret_cast<uintptr_t>(to) - shared.begin) / kCell;
    for (size_t i = first; i < first + size / kCell; ++i) {
        land_tile(shared.cells[i]);
    }
}

void tile_read(uint32_t offset, size_t size, const Place& place) {
    const auto* at = reinterpret_cast<const void*>(shared.begin + offset);
    if (shared.begin + offset + size > shared.end) {
        report("a tile outside shared memory:", at, size, nullptr, nullptr, &place);
    }
    touch(shared, shared.begin + offset, size, Access::kRead, nullptr, &place);
    for (size_t i = offset / kCell; i < (offset + size) / kCell; ++i) {
        check_seen(shared.cells[i], at, size, place);
    }
}

bool tile_in_flight(uint32_t offset) { return shared.cells[offset / kCell].in_flight; }

void begin_copies() { threads.assign(1024, Thread{}); }

void end_block() {
    end_engines();
    for (size_t i = 0; i < threads.size(); ++i) {
        if (!threads[i].open.empty() || !threads[i].committed.empty()) {
            for (const auto& group : threads[i].committed) {
                if (!group.empty()) {
                    throw std::runtime_error("thread " + std::to_string(i) +
                                             " ended with a cp.async it never waited for");
                }
            }
            if (!threads[i].open.empty()) {
                throw std::runtime_error("thread " + std::to_string(i) +
                                         " ended with a cp.async it never committed");
            }
        }
    }
}

}  // namespace emulator
