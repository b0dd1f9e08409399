// What sm_90 adds to the emulator: barriers of some threads, barriers with phases, and the engines
// that copy and multiply tiles.
#pragma once

#include "emulator.h"

namespace emulator {

// Kernels of sm_90 are chosen where there are such.
extern bool sm90;
// Copies of tiles since the module was loaded.
extern int64_t copied_tiles;

// Some threads of the block; the last to come opens it.
void named_barrier(int number, int threads, const Place& place);
// Barriers with phases. Bytes of copy_tile() land when a thread waits for their phase, not before:
// until then their place is NaN and must not be touched.
void phase_init(const void* barrier, unsigned count, const Place& place);
// The engine sees the barriers that the thread has made.
void fence_barriers();
void begin_phase_wait(const void* barrier, const Place& place);
void phase_arrive(const void* barrier, unsigned bytes, const Place& place);
void phase_wait(const void* barrier, unsigned parity, const Place& place);
bool phase_ended(const void* barrier, unsigned parity);
struct Box {
    const char* at;
    const int64_t* dims;
    const int64_t* bytes;  // from one element of a dimension to the next
    int rows;
    int first[3];
};
void copy_tile(void* to, const Box& box, const void* barrier, const Place& place);
void set_registers(int count, bool more, const Place& place);
// Products run when all threads of their warpgroup wait for them; until then their sums are NaN and
// their tiles must stay as they are.
struct GroupProduct {
    float* d;  // [count][4]
    int count;
    bool fresh;  // what the sums hold is dropped
    bool of_registers;
    uint32_t a[4];
    uint64_t left, right;  // tiles
    bool transposed;
    float (*to_float)(uint16_t);
};
void multiply_group(const GroupProduct& product, const Place& place);
void group_fence();
void group_commit();
void group_wait(int groups_left, const Place& place);
// The thread waits until all of its warpgroup have come; the last one runs done().
void warpgroup_meet(void (*done)(int first_thread), const Place& place);

// Shared memory as the engines of sm_90 see it. What a thread writes counts as unseen by them until
// it fences.
uint32_t shared_offset(const void* at, const Place& place);
void begin_tile_write(void* to, size_t size, const Place& place);
void end_tile_write(void* to, size_t size);
void tile_read(uint32_t offset, size_t size, const Place& place);
bool tile_in_flight(uint32_t offset);
void fence_proxies();

// Called by the scheduler.
void begin_engines();
void end_engines();

}  // namespace emulator
