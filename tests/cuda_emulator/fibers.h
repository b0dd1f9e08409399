// A fiber for each thread of a block, and what it waits for.
#pragma once

#include <vector>

#include "engines.h"

#ifndef __x86_64__
#include <ucontext.h>
#endif

namespace emulator {

enum class State { kReady, kWarp, kBarrier, kNamed, kPhase, kGroup, kEnded };

#ifdef __x86_64__
using Context = void*;
#else
using Context = ucontext_t;
#endif

struct Fiber {
    Context context{};
    State state = State::kReady;
    dim3 index;
    Place place;  // where it waits
    unsigned mask = 0;
    WarpOperation run = nullptr;
    void* argument = nullptr;
    int number = 0, threads = 0;    // of the named barrier it waits at
    const void* barrier = nullptr;  // whose phase it waits for
    unsigned parity = 0;
    void* fake_stack = nullptr;  // of ASan
};

// The block that runs.
struct Scheduler {
    std::vector<Fiber> fibers;
    Context main{};
    int current = -1;
    void (*body)(void*) = nullptr;
    void* context = nullptr;
    std::string failure;
    unsigned char* stacks = nullptr;
    size_t stacks_bytes = 0;
    int barriers = 0;  // opened by the block
    bool predicates[2] = {};
    const void* main_stack = nullptr;  // what ASan knows of it
    size_t main_stack_bytes = 0;
};

extern Scheduler s;

// fibers.cpp: stacks for `threads` fibers, which begin anew with each block.
void reserve_stacks(size_t threads);
void begin_fibers(dim3 block);
// From the scheduler into a fiber, until it leaves; throws what the fiber failed with.
void enter(int i);
// From a fiber to the scheduler, until that chooses it again.
void leave();

// scheduler.cpp: who waits where, for the report of a stuck or divergent block.
std::string waiting();

}  // namespace emulator
