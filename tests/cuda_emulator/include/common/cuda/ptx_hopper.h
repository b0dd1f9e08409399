// The wrappers of csrc/common/cuda/ptx_hopper.h, on the emulator.
#pragma once

#include "common/cuda/ptx.h"
#include "common/cuda/tensor_map.h"
#include "engines.h"

namespace pylum::cuda {

#define PYLUM_PLACE emulator::Place place = emulator::Place::current()

inline void named_barrier(int number, int threads, PYLUM_PLACE) {
    emulator::named_barrier(number, threads, place);
}
inline void barrier_init(uint64_t* barrier, uint32_t count, PYLUM_PLACE) {
    emulator::phase_init(barrier, count, place);
}
inline void fence_barriers() { emulator::fence_barriers(); }
inline void barrier_arrive(uint64_t* barrier, PYLUM_PLACE) {
    emulator::phase_arrive(barrier, 0, place);
}
inline void barrier_expect(uint64_t* barrier, uint32_t bytes, PYLUM_PLACE) {
    emulator::phase_arrive(barrier, bytes, place);
}
inline void barrier_wait(uint64_t* barrier, uint32_t parity, PYLUM_PLACE) {
    emulator::phase_wait(barrier, parity, place);
}
inline void fence_proxies() { emulator::fence_proxies(); }

inline void copy_tile(void* to, const TensorMap& map, int x, int y, int z, uint64_t* barrier,
                      PYLUM_PLACE) {
    emulator::copy_tile(to, {map.at, map.dims, map.bytes, map.box_rows, {x, y, z}}, barrier, place);
}

template <int kRegisters>
void more_registers(PYLUM_PLACE) {
    static_assert(kRegisters >= 24 && kRegisters <= 256 && kRegisters % 8 == 0);
    emulator::set_registers(kRegisters, true, place);
}
template <int kRegisters>
void fewer_registers(PYLUM_PLACE) {
    static_assert(kRegisters >= 24 && kRegisters <= 256 && kRegisters % 8 == 0);
    emulator::set_registers(kRegisters, false, place);
}

inline uint64_t matrix_of(const void* at, uint32_t stride, uint32_t part, PYLUM_PLACE) {
    return static_cast<uint64_t>(emulator::shared_offset(at, place) >> 4) |
           static_cast<uint64_t>(part >> 4) << 16 | static_cast<uint64_t>(stride >> 4) << 32 |
           uint64_t{1} << 62;
}

inline void group_fence() { emulator::group_fence(); }
inline void group_commit() { emulator::group_commit(); }
template <int kLeft>
void group_wait(PYLUM_PLACE) {
    emulator::group_wait(kLeft, place);
}

template <int kCount>
void settle(float (&)[kCount][4]) {}

template <typename T>
constexpr float (*kToFloat)(uint16_t) = [](uint16_t bits) {
    T x;
    std::memcpy(&x, &bits, sizeof x);
    if constexpr (std::is_same_v<T, __half>) {
        return __half2float(x);
    } else {
        return __bfloat162float(x);
    }
};

template <typename T, bool kTransposed, bool kFresh = false, int kCount>
void multiply_group(float (&d)[kCount][4], const uint32_t (&a)[4], uint64_t b, PYLUM_PLACE) {
    emulator::multiply_group(
        {&d[0][0], kCount, kFresh, true, {a[0], a[1], a[2], a[3]}, 0, b, kTransposed, kToFloat<T>},
        place);
}
template <typename T, bool kTransposed, bool kFresh = false, int kCount>
void multiply_group(float (&d)[kCount][4], uint64_t a, uint64_t b, PYLUM_PLACE) {
    emulator::multiply_group({&d[0][0], kCount, kFresh, false, {}, a, b, kTransposed, kToFloat<T>},
                             place);
}

#undef PYLUM_PLACE

}  // namespace pylum::cuda
