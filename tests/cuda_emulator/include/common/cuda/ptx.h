// The wrappers of csrc/common/cuda/ptx.h, on the emulator.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

namespace pylum::cuda {

inline void copy_async16(void* to, const void* from, bool valid,
                         emulator::Place place = emulator::Place::current()) {
    emulator::copy_async(to, from, 16, valid ? 16 : 0, place);
}
inline void copy_async_commit() { emulator::copy_async_commit(); }
template <int kLeft>
void copy_async_wait() {
    emulator::copy_async_wait(kLeft);
}

struct MatrixLoad {
    const void* row;
    uint32_t* to;
};

template <bool kTransposed>
__attribute__((no_sanitize("thread", "bounds"))) void gather_matrices(void* const* all) {
    uint16_t element[4][8][8];
    for (int lane = 0; lane < 32; ++lane) {
        std::memcpy(element[lane / 8][lane % 8], static_cast<MatrixLoad*>(all[lane])->row, 16);
    }
    for (int lane = 0; lane < 32; ++lane) {
        for (int i = 0; i < 4; ++i) {
            const int row = lane / 4, column = lane % 4 * 2;
            const uint32_t low = kTransposed ? element[i][column][row] : element[i][row][column];
            const uint32_t high =
                kTransposed ? element[i][column + 1][row] : element[i][row][column + 1];
            static_cast<MatrixLoad*>(all[lane])->to[i] = low | high << 16;
        }
    }
}

template <bool kTransposed>
void load_matrices_from(uint32_t (&to)[4], const void* row, const emulator::Place& place) {
    if (reinterpret_cast<uintptr_t>(row) % 16 != 0) {
        emulator::fail_at("misaligned: ldmatrix", place);
    }
    emulator::access(row, 8, emulator::Access::kRead, place);
    emulator::access(static_cast<const char*>(row) + 8, 8, emulator::Access::kRead, place);
    MatrixLoad load{row, to};
    emulator::warp_operation(~0u, gather_matrices<kTransposed>, &load, place);
}

inline void load_matrices(uint32_t (&to)[4], const void* row,
                          emulator::Place place = emulator::Place::current()) {
    load_matrices_from<false>(to, row, place);
}
inline void load_matrices_transposed(uint32_t (&to)[4], const void* row,
                                     emulator::Place place = emulator::Place::current()) {
    load_matrices_from<true>(to, row, place);
}

struct Multiply {
    float* d;
    const uint32_t* a;
    uint32_t b[2];
};

template <typename T>
float half_of(uint32_t pair, int which) {
    T x;
    const auto bits = static_cast<uint16_t>(pair >> (16 * which));
    std::memcpy(&x, &bits, sizeof x);
    if constexpr (std::is_same_v<T, __half>) {
        return __half2float(x);
    } else {
        return __bfloat162float(x);
    }
}

template <int kDepth>
__attribute__((no_sanitize("thread", "bounds"))) void add_product(void* const* all,
                                                                  const float (&a)[16][kDepth],
                                                                  const float (&b)[8][kDepth]) {
    for (int lane = 0; lane < 32; ++lane) {
        for (int i = 0; i < 4; ++i) {
            const int row = lane / 4 + i / 2 * 8, column = lane % 4 * 2 + i % 2;
            float sum = 0.0f;
            for (int k = 0; k < kDepth; ++k) {
                sum += a[row][k] * b[column][k];
            }
            static_cast<Multiply*>(all[lane])->d[i] += sum;
        }
    }
}

template <typename T>
__attribute__((no_sanitize("thread", "bounds"))) void multiply_warp(void* const* all) {
    float a[16][16], b[8][16];
    for (int lane = 0; lane < 32; ++lane) {
        const auto* m = static_cast<const Multiply*>(all[lane]);
        const int g = lane / 4, t = lane % 4;
        for (int e = 0; e < 2; ++e) {
            for (int i = 0; i < 4; ++i) {
                a[g + i % 2 * 8][2 * t + i / 2 * 8 + e] = half_of<T>(m->a[i], e);
            }
            b[g][2 * t + e] = half_of<T>(m->b[0], e);
            b[g][2 * t + 8 + e] = half_of<T>(m->b[1], e);
        }
    }
    add_product<16>(all, a, b);
}

template <typename T>
void multiply(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1,
              emulator::Place place = emulator::Place::current()) {
    Multiply m{d, a, {b0, b1}};
    emulator::warp_operation(~0u, multiply_warp<T>, &m, place);
}

__attribute__((no_sanitize("thread", "bounds"))) inline void multiply_warp_tf32(void* const* all) {
    const auto kept = [](uint32_t bits) { return __uint_as_float(bits & ~0x1fffu); };
    float a[16][8], b[8][8];
    for (int lane = 0; lane < 32; ++lane) {
        const auto* m = static_cast<const Multiply*>(all[lane]);
        const int g = lane / 4, t = lane % 4;
        for (int i = 0; i < 4; ++i) {
            a[g + i % 2 * 8][t + i / 2 * 4] = kept(m->a[i]);
        }
        b[g][t] = kept(m->b[0]);
        b[g][t + 4] = kept(m->b[1]);
    }
    add_product<8>(all, a, b);
}

inline void multiply_tf32(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1,
                          emulator::Place place = emulator::Place::current()) {
    Multiply m{d, a, {b0, b1}};
    emulator::warp_operation(~0u, multiply_warp_tf32, &m, place);
}

inline float flushed(float x) {
    return std::fabs(x) < 1.17549435e-38f ? std::copysign(0.0f, x) : x;
}
inline float exp2_fast(float x) { return flushed(std::exp2(flushed(x))); }
inline float reciprocal_fast(float x) { return flushed(1.0f / flushed(x)); }
inline float tanh_fast(float x) { return std::tanh(x); }

}  // namespace pylum::cuda
