// Tiles of rows in shared memory and their products on the matrix unit, one warp per 16 rows.
//
// A warp holds a [16, n] product as n / 8 fragments of 4 floats: lane l has columns 2 t, 2 t + 1 of
// row g and then of row g + 8, for g = l / 4 and t = l % 4.
#pragma once

#include "common/cuda/numeric.h"
#include "common/cuda/ptx.h"
#include "common/sequence.h"

namespace pylum::cuda {

// x, of which the compiler knows nothing: what follows from it is worked out where it is used and
// not kept in registers from before a loop.
__device__ __forceinline__ int opaque(int x) {
    asm volatile("" : "+r"(x));
    return x;
}

// 16-byte chunks of a row are permuted by the row's number, so that eight rows of a column of
// chunks lie in different banks.
//
// With `column` below 2 kPack and `further` a multiple of that, column + further of the row stands
// at tile_place(row, column) ^ further.
template <typename T, int kDim>
__device__ __forceinline__ int tile_place(int row, int column) {
    const int chunk = (column / kPack<T>)^(row & 7);
    return row * kDim + chunk * kPack<T> + column % kPack<T>;
}

// Every 16 bytes of the rows of a tensor are aligned and whole.
template <typename T>
__device__ __forceinline__ bool wide_rows(const void* at, int64_t row, int64_t by_head,
                                          int64_t dim) {
    return reinterpret_cast<uintptr_t>(at) % 16 == 0 && row % kPack<T> == 0 &&
           by_head % kPack<T> == 0 && dim % kPack<T> == 0;
}

// Rows [0, rows) of `from` to a tile of kRows, behind the caller's back where `wide` says that all
// is aligned to 16 bytes; zeros past `rows` and `dim`, NaN everywhere where `from` is null.
template <typename T, int kDim, int kRows, int kThreads>
__device__ __forceinline__ void load_tile(T* to, const T* from, int64_t stride, int rows, int dim,
                                          bool wide) {
    constexpr int kChunks = kDim / kPack<T>, kStep = kThreads / kChunks;
    static_assert(kThreads % kChunks == 0 && kRows % kStep == 0);
    const int thread = opaque(static_cast<int>(threadIdx.x));
    const int column = thread % kChunks * kPack<T>;
    int row = thread / kChunks;
    const T* at = from + row * stride + column;
    if (wide && from) {
#pragma unroll 4
        for (int i = 0; i < kRows / kStep; ++i) {
            const bool valid = row < rows && column < dim;
            copy_async16(to + tile_place<T, kDim>(row, column), valid ? at : from, valid);
            row += kStep;
            at += kStep * stride;
        }
        return;
    }
#pragma unroll 1
    for (; row < kRows; row += kStep, at += kStep * stride) {
        Pack<T, kPack<T>> x;
#pragma unroll
        for (int e = 0; e < kPack<T>; ++e) {
            const bool inside = row < rows && column + e < dim;
            x.at[e] = !from ? from_float<T>(quiet_nan()) : inside ? at[e] : from_float<T>(0.0f);
        }
        store_pack<kPack<T>>(to + tile_place<T, kDim>(row, column), x);
    }
}

// Rounded to the 11 significant bits of tf32, and what is left.
__device__ __forceinline__ uint32_t tf32_high(uint32_t x) { return (x + 0x1000u) & ~0x1fffu; }
__device__ __forceinline__ uint32_t tf32_low(uint32_t x) {
    return __float_as_uint(__uint_as_float(x) - __uint_as_float(tf32_high(x)));
}

// d += a * b over 32 bytes of depth.
template <typename T>
__device__ __forceinline__ void add_product(float (&d)[4], const uint32_t (&a)[4], uint32_t b0,
                                            uint32_t b1) {
    if constexpr (sizeof(T) == 2) {
        multiply<T>(d, a, b0, b1);
    } else {
        // float32 as three products of tf32; the matrix unit truncates its sums, so each starts at
        // zero and is added to the rest with rounding.
        uint32_t high[4], low[4];
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            high[i] = tf32_high(a[i]);
            low[i] = tf32_low(a[i]);
        }
        float part[4] = {0.0f, 0.0f, 0.0f, 0.0f};
        multiply_tf32(part, low, tf32_high(b0), tf32_high(b1));
        multiply_tf32(part, high, tf32_low(b0), tf32_low(b1));
        multiply_tf32(part, high, tf32_high(b0), tf32_high(b1));
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            d[i] += part[i];
        }
    }
}

// out [16, 8 * kCount] += a [16, kDim] * b [8 * kCount, kDim]^T, both tiles, a from `first_row`.
template <typename T, int kDim, int kCount>
__device__ __forceinline__ void add_rows_by_rows(float (&out)[kCount][4], const T* a, int first_row,
                                                 const T* b) {
    constexpr int kDepth = 2 * kPack<T>;  // elements in 32 bytes
    const int lane = opaque(static_cast<int>(threadIdx.x)) % 32, matrix = lane / 8, row = lane % 8;
    const int of_a = tile_place<T, kDim>(first_row + matrix % 2 * 8 + row, matrix / 2 * kPack<T>);
    const int of_b = tile_place<T, kDim>(matrix / 2 * 8 + row, matrix % 2 * kPack<T>);
    // Unrolled as a whole, this holds the addresses of every step, which the registers lack.
    [[maybe_unused]] constexpr int kSteps = sizeof(T) == 2 ? 2 : 1;
#pragma unroll kSteps
    for (int d = 0; d < kDim; d += kDepth) {
        uint32_t left[4];
        load_matrices(left, a + (of_a ^ d));
#pragma unroll
        for (int n = 0; n < kCount; n += 2) {
            uint32_t right[4];
            load_matrices(right, b + n * 8 * kDim + (of_b ^ d));
            add_product<T>(out[n], left, right[0], right[1]);
            add_product<T>(out[n + 1], left, right[2], right[3]);
        }
    }
}

template <typename T>
__device__ __forceinline__ uint32_t pair_of(float x, float y) {
    Pack<T, 2> pair;
    pair.at[0] = from_float<T>(x);
    pair.at[1] = from_float<T>(y);
    uint32_t bits;
    memcpy(&bits, &pair, sizeof bits);
    return bits;
}

// The first kBy fragments to the end.
template <int kBy, int kCount>
__device__ __forceinline__ void rotate(float (&x)[kCount][4]) {
    float first[kBy][4];
#pragma unroll
    for (int n = 0; n < kCount + kBy; ++n) {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            if (n < kBy) {
                first[n][i] = x[n][i];
            } else {
                x[n - kBy][i] = n < kCount ? x[n % kCount][i] : first[n % kCount % kBy][i];
            }
        }
    }
}

// out [16, kDim] += weights [16, 8 * kCount] * b [8 * kCount, kDim], a tile; weights are rounded
// to T and stay as they are.
template <typename T, int kDim, int kCount>
__device__ __forceinline__ void add_weighted(float (&out)[kDim / 8][4], float (&weights)[kCount][4],
                                             const T* b) {
    if constexpr (sizeof(T) == 2) {
        const int lane = opaque(static_cast<int>(threadIdx.x)) % 32;
        const int matrix = lane / 8, row = lane % 8;
        const int place = tile_place<T, kDim>(matrix % 2 * 8 + row, matrix / 2 * 8);
#pragma unroll
        for (int k = 0; k < kCount; k += 2) {
            const uint32_t left[4] = {pair_of<T>(weights[k][0], weights[k][1]),
                                      pair_of<T>(weights[k][2], weights[k][3]),
                                      pair_of<T>(weights[k + 1][0], weights[k + 1][1]),
                                      pair_of<T>(weights[k + 1][2], weights[k + 1][3])};
#pragma unroll
            for (int n = 0; n < kDim / 8; n += 2) {
                uint32_t right[4];
                load_matrices_transposed(right,
                                         b + k * 8 * kDim + n / 8 * 64 + (place ^ n % 8 * 8));
                multiply<T>(out[n], left, right[0], right[1]);
                multiply<T>(out[n + 1], left, right[2], right[3]);
            }
        }
    } else {
        // The order of depth is free: columns t and t + 4 of the left side are keys 2 t, 2 t + 1,
        // as they stand in the fragment.
        // Places by `^`: addresses of all columns, or values loaded for later ones, would be more
        // than the registers hold. Nor do they hold 256 columns beside both parts of all weights:
        // there the weights pass by in a ring.
        constexpr int kSteps = kDim > 128 ? 1 : kCount;
#pragma unroll 1
        for (int turn = 0; turn < kCount; turn += kSteps) {
            const int lane = opaque(static_cast<int>(threadIdx.x)) % 32, g = lane / 4, t = lane % 4;
            const int even = tile_place<T, kDim>(2 * t, g), odd = tile_place<T, kDim>(2 * t + 1, g);
#pragma unroll
            for (int k = 0; k < kSteps; ++k) {
                const uint32_t left[4] = {
                    __float_as_uint(weights[k][0]), __float_as_uint(weights[k][2]),
                    __float_as_uint(weights[k][1]), __float_as_uint(weights[k][3])};
#pragma unroll
                for (int n = 0; n < kDim / 8; ++n) {
                    if (n % 4 == 0) {
                        __syncwarp();
                    }
                    const T* key = b + (turn + k) * 8 * kDim + n / 4 * 32;
                    add_product<T>(out[n], left, __float_as_uint(key[even ^ n % 4 * 8]),
                                   __float_as_uint(key[odd ^ n % 4 * 8]));
                }
            }
            if constexpr (kSteps < kCount) {
                rotate<kSteps>(weights);
            }
        }
    }
}

__device__ __forceinline__ bool finite(float x) {
    return (__float_as_uint(x) & 0x7f800000u) != 0x7f800000u;
}

// Whether the thread's share of a tile holds an element that is not finite.
template <typename T, int kElements, int kThreads>
__device__ __forceinline__ bool tile_is_broken(const T* tile) {
    bool broken = false;
#pragma unroll 1
    for (int i = opaque(static_cast<int>(threadIdx.x)); i < kElements / kPack<T>; i += kThreads) {
        const auto pack = load_pack<kPack<T>>(tile + i * kPack<T>);
#pragma unroll
        for (int e = 0; e < kPack<T>; ++e) {
            broken = broken || !finite(to_float(pack.at[e]));
        }
    }
    return broken;
}

// Zero times NaN is NaN. Where a row may not see a row of a tile that is not finite, the tile's
// elements that are not finite are taken out of the product and added to the rows that see them.
//
// Puts zeros in their place and notes their rows, a bit each.
template <typename T, int kDim, int kRows, int kThreads>
__device__ __forceinline__ void take_broken(T* tile, unsigned* broken) {
    if (threadIdx.x < 2) {
        broken[threadIdx.x] = 0;
    }
    __syncthreads();
#pragma unroll 1
    for (int i = opaque(static_cast<int>(threadIdx.x)); i < kRows * kDim; i += kThreads) {
        if (!finite(to_float(tile[i]))) {
            tile[i] = from_float<T>(0.0f);
            const int row = i / kDim;
            atomicOr(&broken[row / 32], 1u << row % 32);
        }
    }
    __syncthreads();
}

// Adds them, read from memory, where row r of the tile is from + stride * r. sees(h, r): whether it
// is seen by the lane's row g + 8 h of out and weights. `line`: shared memory of the warp's own.
template <typename T, int kDim, int kCount, typename Sees>
__device__ __forceinline__ void add_broken_rows(float (&out)[kDim / 8][4],
                                                const float (&weights)[kCount][4], const T* from,
                                                int64_t stride, int64_t dim, const unsigned* broken,
                                                float (&line)[kDim], const Sees& sees) {
    const int lane = opaque(static_cast<int>(threadIdx.x)) % 32;
#pragma unroll 1
    for (int row = 0; row < 8 * kCount; ++row) {
        if (!(broken[row / 32] >> row % 32 & 1u)) {
            continue;
        }
        __syncwarp();  // the line before has been read
#pragma unroll 1
        for (int column = lane; column < kDim; column += 32) {
            const float x = column >= dim ? 0.0f
                            : from        ? to_float(from[stride * row + column])
                                          : quiet_nan();
            line[column] = finite(x) ? 0.0f : x;
        }
        __syncwarp();
        float mine[2] = {0.0f, 0.0f};
#pragma unroll
        for (int n = 0; n < kCount; ++n) {
            // Values, never addresses, are chosen: else the fragments would live in memory.
            const float x0 = weights[n][0], x1 = weights[n][1];
            const float y0 = weights[n][2], y1 = weights[n][3];
            mine[0] = row / 8 == n ? (row % 2 ? x1 : x0) : mine[0];
            mine[1] = row / 8 == n ? (row % 2 ? y1 : y0) : mine[1];
        }
        const int holder = lane / 4 * 4 + row % 8 / 2;
        mine[0] = __shfl_sync(~0u, mine[0], holder);
        mine[1] = __shfl_sync(~0u, mine[1], holder);
        const bool seen[2] = {sees(0, row), sees(1, row)};
#pragma unroll
        for (int n = 0; n < kDim / 8; ++n) {
#pragma unroll
            for (int i = 0; i < 4; ++i) {
                const float x = line[8 * n + 2 * (lane % 4) + i % 2];
                out[n][i] += seen[i / 2] ? mine[i / 2] * x : 0.0f;
            }
        }
    }
}

// Over the four lanes that share a row.
__device__ __forceinline__ float quad_max(float x) {
    x = fmaxf(x, __shfl_xor_sync(~0u, x, 1));
    return fmaxf(x, __shfl_xor_sync(~0u, x, 2));
}
__device__ __forceinline__ float quad_sum(float x) {
    x += __shfl_xor_sync(~0u, x, 1);
    return x + __shfl_xor_sync(~0u, x, 2);
}

}  // namespace pylum::cuda
