// Fibers: their stacks and the switch from one to another.
#include "fibers.h"

#include <sys/mman.h>

#include <stdexcept>

#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

dim3 threadIdx, blockIdx, blockDim, gridDim;

namespace emulator {

bool in_kernel = false;
Scheduler s;

namespace {

constexpr size_t kStackBytes = 128 << 10;

void fiber_main() {
#ifdef __SANITIZE_ADDRESS__
    __sanitizer_finish_switch_fiber(nullptr, &s.main_stack, &s.main_stack_bytes);
#endif
    s.body(s.context);
    s.fibers[s.current].state = State::kEnded;
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

}  // namespace

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

void begin_fibers(dim3 block) {
    const size_t threads = static_cast<size_t>(block.x) * block.y * block.z;
#ifdef __SANITIZE_ADDRESS__
    // Fibers that never returned have left their frames' poison behind.
    __asan_unpoison_memory_region(s.stacks, s.stacks_bytes);
#endif
    s.fibers.assign(threads, Fiber{});
    for (size_t t = 0; t < threads; ++t) {
        s.fibers[t].index =
            dim3(static_cast<unsigned>(t % block.x), static_cast<unsigned>(t / block.x % block.y),
                 static_cast<unsigned>(t / block.x / block.y));
        prepare(s.fibers[t].context, s.stacks + t * kStackBytes);
    }
}

}  // namespace emulator
