// Bounds, races and copies in flight: the hooks that the compiler calls at every access.
#include <dlfcn.h>
#include <link.h>
#include <pthread.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <stdexcept>
#include <vector>

#include "engines.h"

namespace emulator {
namespace {

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

struct Copy {
    unsigned char* to;
    const unsigned char* from;
    size_t size, valid;
};

struct Thread {
    std::vector<Copy> open;
    std::vector<std::vector<Copy>> committed;
};

Memory shared;
std::map<uintptr_t, Memory> memories;
Memory* last = nullptr;
std::vector<Thread> threads;
uint32_t epoch = 1, launch_epoch = 1, block_epoch = 1;
uint32_t warp_epoch[32];
uint32_t fences = 1, thread_fence[1024];  // the block's count, and at each thread's last one
int thread = -1, warp = 0;
uintptr_t stacks_begin, stacks_end, host_stack_begin, host_stack_end;
std::vector<std::pair<uintptr_t, uintptr_t>> constants;

int add_segments(dl_phdr_info* info, size_t, void* self) {
    std::vector<std::pair<uintptr_t, uintptr_t>> found;
    bool ours = false;
    for (int i = 0; i < info->dlpi_phnum; ++i) {
        const auto& segment = info->dlpi_phdr[i];
        if (segment.p_type == PT_LOAD) {
            const uintptr_t begin = info->dlpi_addr + segment.p_vaddr;
            found.emplace_back(begin, begin + segment.p_memsz);
            const auto at = reinterpret_cast<uintptr_t>(self);
            ours = ours || (at >= begin && at < begin + segment.p_memsz);
        }
    }
    if (ours) {
        constants = found;
    }
    return ours;
}

std::string run(const std::string& command) {
    std::string text;
    if (FILE* pipe = popen(command.c_str(), "r")) {
        char line[512];
        while (fgets(line, sizeof line, pipe)) {
            text += line;
        }
        pclose(pipe);
    }
    return text;
}

// "file:line", of the innermost inlined call that lies in a kernel's file.
std::string place_of(const void* code, const Place* place) {
    if (place) {
        return describe(*place);
    }
    Dl_info info;
    if (!dladdr(code, &info)) {
        return "unknown";
    }
    char command[1200];
    snprintf(command, sizeof command, "addr2line -ie '%s' 0x%zx 2>/dev/null", info.dli_fname,
             reinterpret_cast<size_t>(code) - reinterpret_cast<size_t>(info.dli_fbase) - 1);
    const std::string text = run(command);
    std::string best;
    for (size_t begin = 0; begin < text.size();) {
        const size_t end = std::min(text.find('\n', begin), text.size());
        const std::string line = text.substr(begin, end - begin);
        if (best.empty() ||
            (best.find(".cu:") == std::string::npos && line.find(".cu:") != std::string::npos)) {
            best = line;
        }
        begin = end + 1;
    }
    return best.empty() ? "unknown (no addr2line)" : from_root(best);
}

[[noreturn]] void report(const std::string& what, const void* at, size_t size, const Memory* in,
                         const void* code, const Place* place) {
    std::string text = what + " of " + std::to_string(size) + " bytes at ";
    if (in) {
        text += "byte " + std::to_string(reinterpret_cast<uintptr_t>(at) - in->begin) + " of " +
                in->name;
    } else {
        char number[32];
        snprintf(number, sizeof number, "%p", at);
        text += number;
    }
    fail(text + ": " + place_of(code, place));
}

// True where what happened then is visible to the thread that runs now.
bool ordered(uint32_t then, uint32_t then_warp, uint16_t who) {
    if (then < launch_epoch || then < block_epoch) {
        return then < launch_epoch;
    }
    return then < epoch || who == thread || (who / kWarp == warp && then_warp < warp_epoch[warp]);
}

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

Memory* find(uintptr_t at) {
    if (at >= shared.begin && at < shared.end) {
        return &shared;
    }
    if (last && at >= last->begin && at < last->end) {
        return last;
    }
    auto next = memories.upper_bound(at);
    if (next == memories.begin()) {
        return nullptr;
    }
    --next;
    if (at >= next->second.end) {
        return nullptr;
    }
    return last = &next->second;
}

bool private_memory(uintptr_t at) {
    if ((at >= stacks_begin && at < stacks_end) ||
        (at >= host_stack_begin && at < host_stack_end)) {
        return true;
    }
    for (const auto& [begin, end] : constants) {
        if (at >= begin && at < end) {
            return true;
        }
    }
    return false;
}

}  // namespace

static void checked_access(const void* pointer, size_t size, Access kind, const void* code,
                           const Place* place) {
    const auto at = reinterpret_cast<uintptr_t>(pointer);
    if (thread < 0 || (at >= stacks_begin && at < stacks_end)) {
        return;
    }
    Memory* m = find(at);
    if (!m) {
        if (private_memory(at)) {
            return;
        }
        report(kind == Access::kRead ? "out of bounds: read" : "out of bounds: write", pointer,
               size, nullptr, code, place);
    }
    if (at + size > m->end) {
        report(kind == Access::kRead ? "out of bounds: read" : "out of bounds: write", pointer,
               size, m, code, place);
    }
    if (at % (size < 8 ? size : 8) != 0) {
        report("misaligned: access", pointer, size, m, code, place);
    }
    touch(*m, at, size, kind, code, place);
}

void access(const void* at, size_t size, Access kind, const void* code, const Place* place) {
    if (in_kernel) {
        const Outside outside;
        checked_access(at, size, kind, code, place);
    }
}

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
                Cell& c = shared.cells[i];
                c.in_flight = false;
                c.write_epoch = epoch;
                c.write_warp_epoch = warp_epoch[warp];
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
    touch(shared, at, size, Access::kWrite, nullptr, &place);
    memset(to, 0xff, size);
    for (size_t i = 0; i < size / kCell; ++i) {
        Cell& c = shared.cells[(at - shared.begin) / kCell + i];
        c.in_flight = true;
        c.fences = 0;
    }
}

void end_tile_write(void* to, size_t size) {
    const size_t first = (reinterpret_cast<uintptr_t>(to) - shared.begin) / kCell;
    for (size_t i = first; i < first + size / kCell; ++i) {
        Cell& c = shared.cells[i];
        c.in_flight = false;
        c.write_epoch = epoch;
    }
}

void tile_read(uint32_t offset, size_t size, const Place& place) {
    const auto* at = reinterpret_cast<const void*>(shared.begin + offset);
    if (shared.begin + offset + size > shared.end) {
        report("a tile outside shared memory:", at, size, nullptr, nullptr, &place);
    }
    touch(shared, shared.begin + offset, size, Access::kRead, nullptr, &place);
    for (size_t i = offset / kCell; i < (offset + size) / kCell; ++i) {
        const Cell& c = shared.cells[i];
        if (c.fences != 0 && c.fences >= thread_fence[c.writer]) {
            report("a tile written by thread " + std::to_string(c.writer) +
                       " with no fence_proxies() after it:",
                   at, size, &shared, nullptr, &place);
        }
    }
}

bool tile_in_flight(uint32_t offset) { return shared.cells[offset / kCell].in_flight; }

void fence_proxies() { thread_fence[thread] = ++fences; }

// Overlapping views of one tensor become one piece of memory.
void add_memory(const void* at, size_t bytes, const std::string& name) {
    Memory m;
    m.begin = reinterpret_cast<uintptr_t>(at);
    m.end = m.begin + bytes;
    m.name = name;
    for (auto i = memories.begin(); i != memories.end();) {
        const Memory& other = i->second;
        if (other.begin < m.end && m.begin < other.end) {
            m.begin = std::min(m.begin, other.begin);
            m.end = std::max(m.end, other.end);
            m.name = other.name + ", " + m.name;
            i = memories.erase(i);
        } else {
            ++i;
        }
    }
    memories[m.begin] = m;
    last = nullptr;
}

void clear_memory() {
    memories.clear();
    last = nullptr;
}

void begin_launch() {
    launch_epoch = ++epoch;
    if (constants.empty()) {
        dl_iterate_phdr(add_segments, reinterpret_cast<void*>(&add_segments));
    }
    // Parameters are copied from the stack of the thread that launches.
    pthread_attr_t attributes;
    void* low = nullptr;
    size_t size = 0;
    pthread_getattr_np(pthread_self(), &attributes);
    pthread_attr_getstack(&attributes, &low, &size);
    pthread_attr_destroy(&attributes);
    host_stack_begin = reinterpret_cast<uintptr_t>(low);
    host_stack_end = host_stack_begin + size;
}

void begin_block(void* memory, size_t bytes) {
    block_epoch = ++epoch;
    shared.begin = reinterpret_cast<uintptr_t>(memory);
    shared.end = shared.begin + bytes;
    shared.name = "shared memory";
    shared.cells.assign(bytes / kCell + 1, Cell{});
    threads.assign(1024, Thread{});
    memset(warp_epoch, 0, sizeof warp_epoch);
    memset(thread_fence, 0, sizeof thread_fence);
    begin_engines();
}

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

void begin_thread(int number, int its_warp) {
    thread = number;
    warp = its_warp;
}

void next_block_epoch() { ++epoch; }
void next_warp_epoch(int its_warp) { ++warp_epoch[its_warp]; }

void set_stacks(const void* begin, const void* end) {
    stacks_begin = reinterpret_cast<uintptr_t>(begin);
    stacks_end = reinterpret_cast<uintptr_t>(end);
}

}  // namespace emulator

#ifndef __SANITIZE_ADDRESS__
using emulator::Access;

#define HOOK(name, size, kind)                                                          \
    extern "C" void name(void* at) {                                                    \
        emulator::access(at, size, Access::kind, __builtin_return_address(0), nullptr); \
    }
#define HOOKS(size)                                \
    HOOK(__tsan_read##size, size, kRead)           \
    HOOK(__tsan_write##size, size, kWrite)         \
    HOOK(__tsan_unaligned_read##size, size, kRead) \
    HOOK(__tsan_unaligned_write##size, size, kWrite)
HOOKS(1)
HOOKS(2)
HOOKS(4)
HOOKS(8)
HOOKS(16)

extern "C" {
void __tsan_init() {}
void __tsan_func_entry(void*) {}
void __tsan_func_exit() {}
void __tsan_vptr_update(void**, void*) {}
void __tsan_read_range(void* at, size_t size) {
    for (size_t i = 0; i < size; ++i) {
        emulator::access(static_cast<char*>(at) + i, 1, Access::kRead, __builtin_return_address(0),
                         nullptr);
    }
}
void __tsan_write_range(void* at, size_t size) {
    for (size_t i = 0; i < size; ++i) {
        emulator::access(static_cast<char*>(at) + i, 1, Access::kWrite, __builtin_return_address(0),
                         nullptr);
    }
}

// What -fsanitize=bounds,alignment calls: the leading member of its data is the place.
struct SourcePlace {
    const char* file;
    uint32_t line, column;
};
static void sanitizer_report(const SourcePlace* place, const std::string& what) {
    const std::string text =
        what + ": " + emulator::from_root(place->file) + ":" + std::to_string(place->line);
    if (emulator::thread_number() < 0) {
        fprintf(stderr, "%s\n", text.c_str());
        abort();
    }
    emulator::fail(text);
}
void __ubsan_handle_out_of_bounds(SourcePlace* place, uintptr_t index) {
    emulator::in_kernel = false;
    sanitizer_report(place, "out of bounds: index " + std::to_string(index));
}
void __ubsan_handle_type_mismatch_v1(SourcePlace* place, uintptr_t) {
    emulator::in_kernel = false;
    sanitizer_report(place, "misaligned: access");
}
}
#endif
