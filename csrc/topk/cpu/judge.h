// Scores judged by integers of 8 bits. A query and an item become bytes times a scale; the product
// of bytes and a bound on what it can be off by say that most pairs stay below a query's threshold.
// Only the others are scored. Four products of bytes cost one of float32, two one of bfloat16.
#pragma once

#include "common/cpu/rows.h"
#include "common/cpu/tile.h"
#include "topk/topk.h"

#if defined(__AVX512BW__) && !defined(PYLUM_TILES)
#define PYLUM_JUDGES 1

namespace pylum::topk {
namespace {

// Largest elements of what is judged: squares stay finite, and zero is no scale.
constexpr float kLeastElement = 1e-15f, kMostElement = 1e15f;
// What rounding to the nearest byte is off by, with room for the product before it.
constexpr float kHalf = 0.5001f;
// No intrinsics without a mask: they warn of uninitialised values inside GCC 12's own header.
constexpr __mmask16 kEvery = 0xffff;

inline int lanes_left(int64_t left) {
    return static_cast<int>(left < 0 ? 0 : left < kLanes ? left : kLanes);
}

// 64 elements times scale as bytes. Packing permutes them, those of queries and items alike.
template <typename T>
inline __m512i bytes_of(const T* x, int64_t count, float scale) {
    __m512i part[4];
#pragma GCC unroll 4
    for (int v = 0; v < 4; ++v) {
        const vfloat at = load_lanes(x + v * kLanes, lanes_left(count - v * kLanes)) * scale;
        part[v] = _mm512_maskz_cvtps_epi32(kEvery, (__m512)at);
    }
    return _mm512_packs_epi16(_mm512_packs_epi32(part[0], part[1]),
                              _mm512_packs_epi32(part[2], part[3]));
}

// Of a panel: bytes are elements times scale, or scale is 0 where they are not to be judged; no
// row's norm is larger than norm.
struct PanelBytes {
    float scale, norm;
};

// The panel's items as words of four bytes plus 128: panel[i * 64 + j] = word i of item j.
template <typename T, typename Row>
inline PanelBytes pack_bytes(const Row& row, int64_t count, int64_t dim, int32_t* panel) {
    vint largest{};
    vfloat norms{};
    for (int64_t j = 0; j < count; j += kLanes) {
        vfloat squares[kLanes];
        for (int64_t l = 0; l < kLanes; ++l) {
            squares[l] = vfloat{};
            for (int64_t d = 0; j + l < count && d < dim; d += kLanes) {
                const vfloat x = load_lanes(row(j + l) + d, lanes_left(dim - d));
                squares[l] += x * x;
                const __m512i bits = (__m512i)(reinterpret_cast<vint>(x) & 0x7fffffff);
                largest = (vint)_mm512_maskz_max_epi32(kEvery, (__m512i)largest, bits);
            }
        }
        transpose(squares);
        for (int l = 1; l < kLanes; ++l) {
            squares[0] += squares[l];
        }
        norms = max(norms, squares[0]);
    }
    // As integers: NaN is larger than infinity.
    int32_t most = 0;
    for (int l = 0; l < kLanes; ++l) {
        most = largest[l] > most ? largest[l] : most;
    }
    float element;
    memcpy(&element, &most, 4);
    if (!(element >= kLeastElement && element <= kMostElement)) {
        return {0.0f, 0.0f};
    }
    const float scale = 127.0f / element;
    const __m512i middle = _mm512_set1_epi32(static_cast<int>(0x80808080u));
    for (int64_t d = 0; d < dim; d += 4 * kLanes) {
        for (int64_t j = 0; j < kPanel; j += kLanes) {
            vfloat words[kLanes];
            for (int64_t l = 0; l < kLanes; ++l) {
                const __m512i bytes =
                    j + l < count ? bytes_of(row(j + l) + d, dim - d, scale) : __m512i{};
                words[l] = (vfloat)_mm512_xor_si512(bytes, middle);
            }
            transpose(words);
            for (int64_t l = 0; l < kLanes; ++l) {
                store(reinterpret_cast<float*>(panel) + (d / 4 + l) * kPanel + j, words[l]);
            }
        }
    }
    return {scale, __builtin_sqrtf(max(norms))};
}

// What a chunk of queries is judged by, each array as long as the chunk and its padding.
struct QueryBytes {
    int32_t* words;  // [queries, words of a row]
    float* scale;
    float* norm;     // infinite where the query is not to be judged
    float* error;    // norm of what its bytes are off by
    int32_t* start;  // -128 times the sum of its bytes: what the items' 128 add

    QueryBytes(const Params& p, const Layout& at) {
        char* base = p.workspace + at.query_bytes;
        words = reinterpret_cast<int32_t*>(base);
        scale = reinterpret_cast<float*>(base + at.padded * at.words * 4);
        norm = scale + at.padded;
        error = norm + at.padded;
        start = reinterpret_cast<int32_t*>(error + at.padded);
    }

    template <typename T>
    void pack(const T* x, int64_t dim, int64_t row_words, int64_t q) const {
        float largest = 0, squares = 0, errors = 0;
        bool judged = true;
        for (int64_t d = 0; d < dim; ++d) {
            const float a = to_float(x[d]);
            judged &= a == a;
            largest = __builtin_fabsf(a) > largest ? __builtin_fabsf(a) : largest;
        }
        judged &= largest >= kLeastElement && largest <= kMostElement;
        scale[q] = judged ? 127.0f / largest : 1.0f;
        int32_t sum = 0;
        for (int64_t d = 0; d < dim; d += 4 * kLanes) {
            int8_t bytes[4 * kLanes] = {};
            if (judged) {
                const __m512i packed = bytes_of(x + d, dim - d, scale[q]);
                memcpy(bytes, &packed, sizeof(bytes));
            }
            memcpy(words + q * row_words + d / 4, bytes, sizeof(bytes));
            for (const int8_t byte : bytes) {
                sum += byte;
            }
        }
        for (int64_t d = 0; judged && d < dim; ++d) {
            const float a = to_float(x[d]);
            const float off = a - __builtin_nearbyintf(a * scale[q]) / scale[q];
            squares += a * a;
            errors += off * off;
        }
        start[q] = -128 * sum;
        norm[q] = judged ? __builtin_sqrtf(squares) : kInfinity;
        error[q] = __builtin_sqrtf(errors);
    }
};

// limits[q]: a product of bytes below it means a score below the query's threshold.
inline void judge_limits(const QueryBytes& queries, const float* thresholds, PanelBytes items,
                         int64_t dim, int64_t begin, int64_t end, int32_t* limits) {
    constexpr float kFar = 1e9f;
    // <q, x> = <q', x'> + <q, x - x'> + <q - q', x'>, where ' is what the bytes stand for.
    const float off = kHalf * __builtin_sqrtf(static_cast<float>(dim)) / items.scale;
    const float size = items.norm + off;
    // The chain of multiply-adds that scores is off by less than this times both norms.
    const float rounded = static_cast<float>(dim + 8) * 2.4e-7f * items.norm;
    for (int64_t q = begin; q < end; q += kLanes) {
        const vfloat bound =
            1.001f * (load(queries.norm + q) * (off + rounded) + load(queries.error + q) * size);
        vfloat limit = (load(thresholds + q) - bound) * (load(queries.scale + q) * items.scale);
        limit = limit - 4e-6f * (limit < 0.0f ? -limit : limit) - 2.0f;
        // A limit that is no number lets all pass.
        limit = limit > -kFar ? limit : broadcast(-kFar);
        limit = limit < kFar ? limit : broadcast(kFar);
        if (items.scale == 0) {
            limit = broadcast(-kFar);
        }
        _mm512_storeu_si512(limits + q, _mm512_maskz_cvttps_epi32(kEvery, (__m512)limit));
    }
}

constexpr int kJudgedRows = 6;

// bits[r]: items of the panel whose product of bytes with query r, at x, reaches its limit.
__attribute__((target("avx512vnni"), noinline)) void judge_tile(const int32_t* __restrict x,
                                                                int64_t words,
                                                                const int32_t* __restrict panel,
                                                                const int32_t* __restrict start,
                                                                const int32_t* __restrict limits,
                                                                uint64_t (&bits)[kJudgedRows]) {
    vint sums[kJudgedRows][4];
#pragma GCC unroll 6
    for (int r = 0; r < kJudgedRows; ++r) {
#pragma GCC unroll 4
        for (int v = 0; v < 4; ++v) {
            sums[r][v] = broadcast(start[r]);
        }
    }
    for (int64_t i = 0; i < words; ++i) {
        vint columns[4];
#pragma GCC unroll 4
        for (int v = 0; v < 4; ++v) {
            columns[v] = load(panel + v * kLanes);
        }
#pragma GCC unroll 6
        for (int r = 0; r < kJudgedRows; ++r) {
            const vint four = broadcast(x[r * words]);
#pragma GCC unroll 4
            for (int v = 0; v < 4; ++v) {
                sums[r][v] = (vint)_mm512_dpbusd_epi32((__m512i)sums[r][v], (__m512i)columns[v],
                                                       (__m512i)four);
            }
        }
        panel += kPanel;
        ++x;
    }
#pragma GCC unroll 6
    for (int r = 0; r < kJudgedRows; ++r) {
        const __m512i limit = _mm512_set1_epi32(limits[r]);
        uint64_t found = 0;
#pragma GCC unroll 4
        for (int v = 0; v < 4; ++v) {
            found |= uint64_t{_mm512_cmpge_epi32_mask((__m512i)sums[r][v], limit)} << v * kLanes;
        }
        bits[r] = found;
    }
}

}  // namespace
}  // namespace pylum::topk
#endif
