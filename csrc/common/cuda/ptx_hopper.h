// The instructions that sm_90a adds, wrapped: barriers with phases, the copy engine, matrix
// products of a warpgroup. As ptx.h: tests/cuda_emulator/include has the same functions for the
// host.
//
// Shared memory is written and read by two proxies: threads, and the engines behind copy_tile() and
// multiply_group(). What a thread has written an engine sees after the thread's fence_proxies() and
// a barrier.
#pragma once

#include <type_traits>

#include "common/cuda/ptx.h"
#include "common/cuda/tensor_map.h"

namespace pylum::cuda {

template <typename T>
constexpr bool kIsHalf = std::is_same<T, __half>::value;

// A barrier of `threads` of the block, a multiple of 32; the numbers are 1 to 15.
__device__ __forceinline__ void named_barrier(int number, int threads) {
    asm volatile("bar.sync %0, %1;\n" ::"r"(number), "r"(threads) : "memory");
}

// A phase ends when `count` threads have arrived and the bytes they expected have come. By one
// thread; others see the barrier after fence_barriers() and a barrier of the block.
__device__ __forceinline__ void barrier_init(uint64_t* barrier, uint32_t count) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;\n" ::"r"(shared_address(barrier)),
                 "r"(count)
                 : "memory");
}
__device__ __forceinline__ void fence_barriers() {
    asm volatile("fence.mbarrier_init.release.cluster;\n" ::: "memory");
}
__device__ __forceinline__ void barrier_arrive(uint64_t* barrier) {
    asm volatile(
        "mbarrier.arrive.release.cta.shared::cta.b64 _, [%0];\n" ::"r"(shared_address(barrier))
        : "memory");
}
// Arrives, and the phase waits for the bytes too.
__device__ __forceinline__ void barrier_expect(uint64_t* barrier, uint32_t bytes) {
    asm volatile("mbarrier.arrive.expect_tx.release.cta.shared::cta.b64 _, [%0], %1;\n" ::"r"(
                     shared_address(barrier)),
                 "r"(bytes)
                 : "memory");
}
// Until the phase of this parity has ended: 0 for the first, then 1 and 0 in turn. The phase before
// the first counts as ended, with parity 1.
__device__ __forceinline__ void barrier_wait(uint64_t* barrier, uint32_t parity) {
    asm volatile(
        "{\n"
        ".reg .pred ended;\n"
        "again:\n"
        "mbarrier.try_wait.parity.acquire.cta.shared::cta.b64 ended, [%0], %1;\n"
        "@!ended bra again;\n"
        "}\n" ::"r"(shared_address(barrier)),
        "r"(parity)
        : "memory");
}

__device__ __forceinline__ void fence_proxies() {
    asm volatile("fence.proxy.async.shared::cta;\n" ::: "memory");
}

// The map's box at these coordinates to shared memory, by one thread; its bytes count towards the
// barrier. Zeros outside the tensor. `to` is aligned to 1024 bytes: rows of 128 bytes, whose
// 16-byte chunks are permuted by the row's number modulo 8.
__device__ __forceinline__ void copy_tile(void* to, const TensorMap& map, int x, int y, int z,
                                          uint64_t* barrier) {
    asm volatile(
        "cp.async.bulk.tensor.3d.shared::cluster.global.tile.mbarrier::complete_tx::bytes "
        "[%0], [%1, {%2, %3, %4}], [%5];\n" ::"r"(shared_address(to)),
        "l"(&map), "r"(x), "r"(y), "r"(z), "r"(shared_address(barrier))
        : "memory");
}

// Registers of each thread of a warpgroup from now on; all its threads.
template <int kRegisters>
__device__ __forceinline__ void more_registers() {
    asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;\n" ::"n"(kRegisters));
}
template <int kRegisters>
__device__ __forceinline__ void fewer_registers() {
    asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;\n" ::"n"(kRegisters));
}

// A tile in shared memory as copy_tile() leaves it, rows of 128 bytes, as a factor: `stride` bytes
// from eight rows to the next eight; `part` bytes between its parts of 64 columns, where the
// columns are not the depth.
__device__ __forceinline__ uint64_t matrix_of(const void* at, uint32_t stride, uint32_t part) {
    return static_cast<uint64_t>((shared_address(at) & 0x3ffffu) >> 4) |
           static_cast<uint64_t>(part >> 4) << 16 | static_cast<uint64_t>(stride >> 4) << 32 |
           uint64_t{1} << 62;  // chunks permuted over 128 bytes
}

// Products run behind the caller's back. Before the first of some, and wherever registers of theirs
// were touched: group_fence(). Those so far form a group; at most kLeft groups are still under way
// after group_wait(): only then may their sums be read and their tiles overwritten.
__device__ __forceinline__ void group_fence() {
    asm volatile("wgmma.fence.sync.aligned;\n" ::: "memory");
}
__device__ __forceinline__ void group_commit() {
    asm volatile("wgmma.commit_group.sync.aligned;\n" ::: "memory");
}
template <int kLeft>
__device__ __forceinline__ void group_wait() {
    asm volatile("wgmma.wait_group.sync.aligned %0;\n" ::"n"(kLeft) : "memory");
}

// After group_wait(), before the sums are read: keeps the compiler, which knows of no product under
// way, from reading them earlier.
template <int kCount>
__device__ __forceinline__ void settle(float (&d)[kCount][4]) {
#pragma unroll
    for (int n = 0; n < kCount; ++n) {
        asm volatile("" : "+f"(d[n][0]), "+f"(d[n][1]), "+f"(d[n][2]), "+f"(d[n][3])::"memory");
    }
}

// d += a * b^T for d [64, 8 * kCount], a [64, 16], b [8 * kCount, 16]; warp w of the group has rows
// 16 w to 16 w + 15 of a, where it is in registers, and of d, both laid out as for multiply(). The
// tiles' columns are the depth, but those of b its rows where kTransposed: b is then [16, 8 *
// kCount]. kFresh: d = a * b^T instead; sums set to zero by other instructions would have to wait
// for the products under way.
#define PYLUM_SUMS(sign, n) \
    sign "f"(d[n][0]), sign "f"(d[n][1]), sign "f"(d[n][2]), sign "f"(d[n][3])
#define PYLUM_8_SUMS(sign, n)                                                      \
    PYLUM_SUMS(sign, n), PYLUM_SUMS(sign, n + 1), PYLUM_SUMS(sign, n + 2),         \
        PYLUM_SUMS(sign, n + 3), PYLUM_SUMS(sign, n + 4), PYLUM_SUMS(sign, n + 5), \
        PYLUM_SUMS(sign, n + 6), PYLUM_SUMS(sign, n + 7)
#define PYLUM_32_NAMES                                                       \
    "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, " \
    "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31"
#define PYLUM_64_NAMES                                                                 \
    "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "           \
    "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, " \
    "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, " \
    "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"
#define PYLUM_REGISTERS_BY_TILE(columns, type, names, a0, a1, a2, a3, tile, old, transposed, ...)  \
    asm volatile("wgmma.mma_async.sync.aligned.m64n" columns "k16.f32." type "." type " {" names   \
                 "}, {" a0 ", " a1 ", " a2 ", " a3 "}, " tile ", " old ", 1, 1, " transposed ";\n" \
                 : __VA_ARGS__                                                                     \
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "n"(kTransposed ? 1 : 0))
#define PYLUM_REGISTERS_BY_64(type, sign, old)                                                  \
    PYLUM_REGISTERS_BY_TILE("64", type, PYLUM_32_NAMES, "%32", "%33", "%34", "%35", "%36", old, \
                            "%37", PYLUM_8_SUMS(sign, 0))
#define PYLUM_REGISTERS_BY_128(type)                                                             \
    PYLUM_REGISTERS_BY_TILE("128", type, PYLUM_64_NAMES, "%64", "%65", "%66", "%67", "%68", "1", \
                            "%69", PYLUM_8_SUMS("+", 0), PYLUM_8_SUMS("+", 8))

template <typename T, bool kTransposed, bool kFresh = false>
__device__ __forceinline__ void multiply_group(float (&d)[8][4], const uint32_t (&a)[4],
                                               uint64_t b) {
    if constexpr (kIsHalf<T> && kFresh) {
        PYLUM_REGISTERS_BY_64("f16", "=", "0");
    } else if constexpr (kIsHalf<T>) {
        PYLUM_REGISTERS_BY_64("f16", "+", "1");
    } else if constexpr (kFresh) {
        PYLUM_REGISTERS_BY_64("bf16", "=", "0");
    } else {
        PYLUM_REGISTERS_BY_64("bf16", "+", "1");
    }
}
template <typename T, bool kTransposed>
__device__ __forceinline__ void multiply_group(float (&d)[16][4], const uint32_t (&a)[4],
                                               uint64_t b) {
    if constexpr (kIsHalf<T>) {
        PYLUM_REGISTERS_BY_128("f16");
    } else {
        PYLUM_REGISTERS_BY_128("bf16");
    }
}

// Both factors tiles.
#define PYLUM_TILE_BY_TILE(type, sign, old)                                                      \
    asm volatile("wgmma.mma_async.sync.aligned.m64n64k16.f32." type "." type " {" PYLUM_32_NAMES \
                 "}, %32, %33, " old ", 1, 1, 0, %34;\n"                                         \
                 : PYLUM_8_SUMS(sign, 0)                                                         \
                 : "l"(a), "l"(b), "n"(kTransposed ? 1 : 0))
template <typename T, bool kTransposed, bool kFresh = false>
__device__ __forceinline__ void multiply_group(float (&d)[8][4], uint64_t a, uint64_t b) {
    if constexpr (kIsHalf<T> && kFresh) {
        PYLUM_TILE_BY_TILE("f16", "=", "0");
    } else if constexpr (kIsHalf<T>) {
        PYLUM_TILE_BY_TILE("f16", "+", "1");
    } else if constexpr (kFresh) {
        PYLUM_TILE_BY_TILE("bf16", "=", "0");
    } else {
        PYLUM_TILE_BY_TILE("bf16", "+", "1");
    }
}
#undef PYLUM_TILE_BY_TILE
#undef PYLUM_REGISTERS_BY_128
#undef PYLUM_REGISTERS_BY_64
#undef PYLUM_REGISTERS_BY_TILE
#undef PYLUM_64_NAMES
#undef PYLUM_32_NAMES
#undef PYLUM_8_SUMS
#undef PYLUM_SUMS

}  // namespace pylum::cuda
