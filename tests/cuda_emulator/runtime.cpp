// Fibers and their scheduler.
#include <sys/mman.h>

#include <cstring>
#include <memory>
#include <set>
#include <stdexcept>
#include <vector>

#include "engines.h"

#ifndef __x86_64__
#include <ucontext.h>
#endif
#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

dim3 threadIdx, blockIdx, blockDim, gridDim;

namespace emulator {

unsigned char* shared_memory = nullptr;
bool backwards = false, in_kernel = false;

namespace {

constexpr size_t kStackBytes = 128 << 10;

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

Scheduler s;

void fiber_main() {
#ifdef __SANITIZE_ADDRESS__
    __sanitizer_finish_switch_fiber(nullptr, &s.main_stack, &s.main_stack_bytes);
#endif
    s.body(s.context);
    s.fibers[s.current].state = State::kEnded;
    extern void leave();
    leave();
}

#ifdef __x86_64__
// Saves the callee-saved registers on the stack of `from` and takes those of `to`.
extern "C" void pylum_emulator_switch(void** from, void* to);
asm(R"(
.text
.hidden pylum_emulator_switch
.globl pylum_emulator_switch
pylum_emulator_switch:
    pushq %rbp
    pushq %rbx
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    movq %rsp, (%rdi)
    movq %rsi, %rsp
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbx
    popq %rbp
    ret
)");

void switch_to(Context& from, Context& to) { pylum_emulator_switch(&from, to); }

void prepare(Context& context, unsigned char* stack) {
    void** top = reinterpret_cast<void**>(stack + kStackBytes);
    top[-1] = nullptr;
    top[-2] = reinterpret_cast<void*>(&fiber_main);
    for (int i = 3; i <= 8; ++i) {
        top[-i] = nullptr;
    }
    context = top - 8;
}
#else
void switch_to(Context& from, Context& to) { swapcontext(&from, &to); }

void prepare(Context& context, unsigned char* stack) {
    getcontext(&context);
    context.uc_stack.ss_sp = stack;
    context.uc_stack.ss_size = kStackBytes;
    context.uc_link = nullptr;
    makecontext(&context, fiber_main, 0);
}
#endif

// Back to the scheduler, until it chooses this fiber again.
void leave() {
    Fiber& f = s.fibers[s.current];
#ifdef __SANITIZE_ADDRESS__
    __sanitizer_start_switch_fiber(&f.fake_stack, s.main_stack, s.main_stack_bytes);
    switch_to(f.context, s.main);
    __sanitizer_finish_switch_fiber(f.fake_stack, nullptr, nullptr);
#else
    switch_to(f.context, s.main);
#endif
}

void enter(int i) {
    s.current = i;
    threadIdx = s.fibers[i].index;
    begin_thread(i, i / kWarp);
    in_kernel = true;
#ifdef __SANITIZE_ADDRESS__
    void* fake_stack = nullptr;
    __sanitizer_start_switch_fiber(&fake_stack, s.stacks + i * kStackBytes, kStackBytes);
    switch_to(s.main, s.fibers[i].context);
    __sanitizer_finish_switch_fiber(fake_stack, nullptr, nullptr);
#else
    switch_to(s.main, s.fibers[i].context);
#endif
    in_kernel = false;
    if (!s.failure.empty()) {
        throw std::runtime_error(s.failure);
    }
}

std::string ranges(const std::vector<int>& threads) {
    std::string text;
    for (size_t i = 0; i < threads.size();) {
        size_t j = i;
        while (j + 1 < threads.size() && threads[j + 1] == threads[j] + 1) {
            ++j;
        }
        text += (text.empty() ? "" : ", ") + std::to_string(threads[i]);
        text += j > i ? "-" + std::to_string(threads[j]) : "";
        i = j + 1;
    }
    return text;
}

// Who waits where, for the report of a stuck or divergent block.
std::string waiting() {
    std::set<std::string> places;
    for (const Fiber& f : s.fibers) {
        places.insert(f.state == State::kEnded ? "" : describe(f.place));
    }
    std::string text;
    for (const std::string& place : places) {
        std::vector<int> threads;
        for (size_t i = 0; i < s.fibers.size(); ++i) {
            const Fiber& f = s.fibers[i];
            if ((f.state == State::kEnded ? "" : describe(f.place)) == place) {
                threads.push_back(static_cast<int>(i));
            }
        }
        text +=
            "; threads " + ranges(threads) + (place.empty() ? " have ended" : " wait at " + place);
    }
    return text;
}

std::string block_name() {
    return " (block " + std::to_string(blockIdx.x) + ", " + std::to_string(blockIdx.y) + ", " +
           std::to_string(blockIdx.z) + ")";
}

// Every thread waits or has ended: opens the barrier, or throws. False where all have ended.
bool release() {
    bool any = false, same = true;
    const Fiber* first = nullptr;
    for (const Fiber& f : s.fibers) {
        if (f.state == State::kEnded) {
            continue;
        }
        any = true;
        same = same && f.state == State::kBarrier;
        first = first ? first : &f;
        same = same && f.place.line() == first->place.line() &&
               !strcmp(f.place.file_name(), first->place.file_name());
    }
    if (!any) {
        return false;
    }
    if (!same) {
        throw std::runtime_error("threads of a block wait at different places" + waiting() +
                                 block_name());
    }
    for (Fiber& f : s.fibers) {
        f.state = f.state == State::kBarrier ? State::kReady : f.state;
    }
    ++s.barriers;
    s.predicates[s.barriers % 2] = false;
    next_block_epoch();
    return true;
}

// A phase that has ended lets its threads go on.
bool end_phases() {
    bool any = false;
    for (Fiber& f : s.fibers) {
        if (f.state == State::kPhase && phase_ended(f.barrier, f.parity)) {
            f.state = State::kReady;
        }
        any = any || f.state == State::kReady;
    }
    return any;
}

void run_block() {
    const int count = static_cast<int>(s.fibers.size());
    const int warps = (count + kWarp - 1) / kWarp;
    do {
        for (int i = 0; i < warps; ++i) {
            const int warp = backwards ? warps - 1 - i : i;
            const int end = std::min(count, (warp + 1) * kWarp);
            for (bool moved = true; moved;) {
                moved = false;
                for (int t = warp * kWarp; t < end; ++t) {
                    if (s.fibers[t].state == State::kReady) {
                        enter(t);
                        moved = true;
                    }
                }
            }
        }
    } while (end_phases() || release());
}

void leave_device() {
    s.current = -1;
    begin_thread(-1, 0);
}

void reserve_stacks(size_t threads) {
    if (threads * kStackBytes <= s.stacks_bytes) {
        return;
    }
    if (s.stacks) {
        munmap(s.stacks, s.stacks_bytes);
    }
    s.stacks_bytes = threads * kStackBytes;
    s.stacks = static_cast<unsigned char*>(
        mmap(nullptr, s.stacks_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    if (s.stacks == MAP_FAILED) {
        s.stacks = nullptr;
        s.stacks_bytes = 0;
        throw std::runtime_error("the emulator got no memory for the stacks of a block");
    }
    // The lowest page of each stack is a guard.
    for (size_t i = 0; i < threads; ++i) {
        mprotect(s.stacks + i * kStackBytes, 4096, PROT_NONE);
    }
    set_stacks(s.stacks, s.stacks + s.stacks_bytes);
}

}  // namespace

int thread_number() { return s.current; }
int lane() { return s.current % kWarp; }

std::string describe(const Place& place) {
    return from_root(place.file_name()) + ":" + std::to_string(place.line());
}

std::string from_root(const std::string& path) {
    const size_t at = std::max(path.rfind("/csrc/") + 1, path.rfind("/tests/") + 1);
    return path.substr(at);
}

void fail_at(const char* what, const Place& place) {
    in_kernel = false;
    fail(std::string(what) + " at " + describe(place));
}

void fail(const std::string& message) {
    in_kernel = false;
    s.failure = message + " (thread " + std::to_string(s.current) + ")" + block_name();
    leave();
    __builtin_unreachable();
}

void block_barrier(const Place& place) {
    const Outside outside;
    Fiber& f = s.fibers[s.current];
    f.state = State::kBarrier;
    f.place = place;
    leave();
}

bool block_or(bool predicate, const Place& place) {
    // Barriers take the two slots in turn; the one that opens a slot's barrier clears the other.
    const int slot = s.barriers % 2;
    s.predicates[slot] = s.predicates[slot] || predicate;
    block_barrier(place);
    return s.predicates[slot];
}

void named_barrier(int number, int threads, const Place& place) {
    const Outside outside;
    if (number < 1 || number > 15 || threads < 1 || threads % kWarp != 0 ||
        threads > static_cast<int>(s.fibers.size())) {
        fail_at("a named barrier has a number of 1 to 15 and whole warps of the block,", place);
    }
    Fiber& own = s.fibers[s.current];
    own.place = place;
    own.number = number;
    own.threads = threads;
    own.state = State::kNamed;
    int here = 0;
    for (const Fiber& f : s.fibers) {
        if (f.state == State::kNamed && f.number == number) {
            ++here;
            if (f.threads != threads) {
                fail("threads expect another number of threads at a named barrier" + waiting());
            }
        }
    }
    if (here < threads) {
        leave();
        return;
    }
    next_block_epoch();
    for (Fiber& f : s.fibers) {
        if (f.state == State::kNamed && f.number == number) {
            f.state = State::kReady;
        }
    }
}

void phase_wait(const void* barrier, unsigned parity, const Place& place) {
    const Outside outside;
    if (!phase_ended(barrier, parity)) {
        Fiber& own = s.fibers[s.current];
        own.place = place;
        own.barrier = barrier;
        own.parity = parity;
        own.state = State::kPhase;
        leave();
    }
}

void warpgroup_meet(void (*done)(int first_thread), const Place& place) {
    constexpr int kGroup = 4 * kWarp;
    const int first = s.current / kGroup * kGroup;
    Fiber& own = s.fibers[s.current];
    own.place = place;
    own.state = State::kGroup;
    if (first + kGroup > static_cast<int>(s.fibers.size())) {
        fail_at("a warpgroup has 128 threads,", place);
    }
    for (int i = first; i < first + kGroup; ++i) {
        const Fiber& f = s.fibers[i];
        if (f.state != State::kGroup) {
            leave();
            return;
        }
        if (f.place.line() != place.line()) {
            fail("threads of a warpgroup meet in different operations" + waiting());
        }
    }
    done(first);
    for (int i = first; i < first + kGroup; ++i) {
        s.fibers[i].state = State::kReady;
    }
}

void warp_operation(unsigned mask, WarpOperation run, void* argument, const Place& place) {
    const Outside outside;
    const int first = s.current / kWarp * kWarp;
    Fiber& own = s.fibers[s.current];
    if (!(mask >> lane() & 1)) {
        fail("a thread is not in the mask of the warp operation it takes part in at " +
             describe(place));
    }
    own.place = place;
    own.mask = mask;
    own.run = run;
    own.argument = argument;
    own.state = State::kWarp;
    void* arguments[kWarp] = {};
    for (int i = 0; i < kWarp; ++i) {
        if (!(mask >> i & 1)) {
            continue;
        }
        if (first + i >= static_cast<int>(s.fibers.size())) {
            fail("the mask of a warp operation names a thread past the block at " +
                 describe(place));
        }
        const Fiber& f = s.fibers[first + i];
        if (f.state != State::kWarp) {
            leave();
            return;
        }
        if (f.mask != mask || f.run != run || f.place.line() != place.line()) {
            fail("threads of a warp meet in different operations" + waiting());
        }
        arguments[i] = f.argument;
    }
    run(arguments);
    next_warp_epoch(s.current / kWarp);
    for (int i = 0; i < kWarp; ++i) {
        if (mask >> i & 1) {
            s.fibers[first + i].state = State::kReady;
        }
    }
}

void launch(dim3 grid, dim3 block, size_t shared_bytes, void (*body)(void*), void* context) {
    const size_t threads = static_cast<size_t>(block.x) * block.y * block.z;
    if (threads == 0 || threads > 1024) {
        throw std::runtime_error("a block must have 1 to 1024 threads, got " +
                                 std::to_string(threads));
    }
    if (grid.y > 65535 || grid.z > 65535 || grid.x > 2147483647u || shared_bytes > (227 << 10)) {
        throw std::runtime_error("a launch is larger than a device takes");
    }
    reserve_stacks(threads);
    // The exact size, so that what lies past it is not shared memory.
    std::unique_ptr<unsigned char[]> shared(new unsigned char[shared_bytes + 1024]);
    auto* at = reinterpret_cast<unsigned char*>((reinterpret_cast<uintptr_t>(shared.get()) + 1023) /
                                                1024 * 1024);
    shared_memory = at;
    s.body = body;
    s.context = context;
    s.failure.clear();
    blockDim = block;
    gridDim = grid;
    begin_launch();
    const uint64_t blocks = static_cast<uint64_t>(grid.x) * grid.y * grid.z;
    for (uint64_t i = 0; i < blocks; ++i) {
        const uint64_t b = backwards ? blocks - 1 - i : i;
        blockIdx =
            dim3(static_cast<unsigned>(b % grid.x), static_cast<unsigned>(b / grid.x % grid.y),
                 static_cast<unsigned>(b / grid.x / grid.y));
#ifdef __SANITIZE_ADDRESS__
        // Fibers that never returned have left their frames' poison behind.
        __asan_unpoison_memory_region(s.stacks, s.stacks_bytes);
#endif
        memset(at, 0xff, shared_bytes);  // NaN in every floating type
        s.fibers.assign(threads, Fiber{});
        for (size_t t = 0; t < threads; ++t) {
            s.fibers[t].index = dim3(static_cast<unsigned>(t % block.x),
                                     static_cast<unsigned>(t / block.x % block.y),
                                     static_cast<unsigned>(t / block.x / block.y));
            prepare(s.fibers[t].context, s.stacks + t * kStackBytes);
        }
        begin_block(at, shared_bytes);
        try {
            run_block();
            end_block();
        } catch (...) {
            leave_device();
            throw;
        }
        leave_device();
    }
}

}  // namespace emulator
