// The CUDA of one host thread: a fiber per CUDA thread, blocks one after another.
//
// Kernels are compiled with g++ -fsanitize=thread,undefined, but linked with no sanitizer
// runtime: the hooks of reports.cpp take its place and see every access to memory.
#pragma once

#include <cstddef>
#include <cstdint>
#include <source_location>
#include <string>

struct dim3 {
    unsigned x, y, z;
    constexpr dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};

// The thread that runs now; set at every switch.
extern dim3 threadIdx, blockIdx, blockDim, gridDim;

namespace emulator {

using Place = std::source_location;

constexpr int kWarp = 32;

extern unsigned char* shared_memory;

// Ends the launch: launch() throws std::runtime_error with the message, thread and block.
[[noreturn]] void fail(const std::string& message);
// For instrumented code, which must not make strings: "<what> at <place>".
[[noreturn]] void fail_at(const char* what, const Place& place);
std::string describe(const Place& place);
std::string from_root(const std::string& path);

// Runs body(context) once per CUDA thread. Blocks and warps go in ascending order, or descending
// where backwards is set, so that what depends on their order shows.
void launch(dim3 grid, dim3 block, size_t shared_bytes, void (*body)(void*), void* context);
extern bool backwards;

// All threads of the block that have not ended.
void block_barrier(const Place& place);
bool block_or(bool predicate, const Place& place);

// One operation of the lanes in `mask`, done by the last to come: run(arguments) with the 32
// arguments, null for lanes outside. Lanes must come from the same line with the same mask.
using WarpOperation = void (*)(void* const* arguments);
void warp_operation(unsigned mask, WarpOperation run, void* argument, const Place& place);

int thread_number();  // in the block
int lane();

enum class Access { kRead, kWrite, kAtomic };
// What every access of a kernel goes through; `place` where the caller knows it, else found from
// the code address.
void access(const void* at, size_t size, Access kind, const void* code, const Place* place);
inline void access(const void* at, size_t size, Access kind, const Place& place) {
    access(at, size, kind, nullptr, &place);
}

// Copies that have been issued and are not waited for: their destination is NaN and must not be
// touched. A null source fills with zeros.
void copy_async(void* to, const void* from, size_t size, size_t valid, const Place& place);
void copy_async_commit();
void copy_async_wait(int groups_left);

// Memory that kernels may touch, besides their stacks, shared memory and constants.
void add_memory(const void* at, size_t bytes, const std::string& name);
void clear_memory();

// Accesses count while a kernel runs, not while the emulator does: functions that both use, such as
// those of std::string, may be the instrumented ones.
extern bool in_kernel;
struct Outside {
    Outside() { in_kernel = false; }
    ~Outside() { in_kernel = true; }
};

// Called by the scheduler.
void begin_launch();
void begin_block(void* shared, size_t bytes);
void end_block();
void begin_thread(int thread, int warp);
void next_block_epoch();
void next_warp_epoch(int warp);
void set_stacks(const void* begin, const void* end);

}  // namespace emulator
