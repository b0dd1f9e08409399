// Bounds and alignment: every access of a kernel lies in one of the pieces of memory it was given.
#include <link.h>
#include <pthread.h>

#include <algorithm>
#include <map>

#include "memory.h"

namespace emulator {

Memory shared;

namespace {

std::map<uintptr_t, Memory> memories;
Memory* last = nullptr;
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

void checked_access(const void* pointer, size_t size, Access kind, const void* code,
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
    begin_launch_epoch();
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
    begin_block_epoch();
    shared.begin = reinterpret_cast<uintptr_t>(memory);
    shared.end = shared.begin + bytes;
    shared.name = "shared memory";
    shared.cells.assign(bytes / kCell + 1, Cell{});
    begin_copies();
    begin_engines();
}

void set_stacks(const void* begin, const void* end) {
    stacks_begin = reinterpret_cast<uintptr_t>(begin);
    stacks_end = reinterpret_cast<uintptr_t>(end);
}

}  // namespace emulator
