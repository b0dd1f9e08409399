// Register tiles of 6 rows; a panel of the weight stays in the first-level cache for a chunk of
// rows. Bound by multiply-adds: x and y pass through memory once.
#include "common/cpu/rows.h"
#include "common/cpu/tile.h"
#include "common/parallel.h"
#include "linear/linear.h"

namespace pylum::linear::PYLUM_ISA {
namespace {

constexpr int64_t kMaxDepth = 4096;
static_assert(kPanel == kColumns && kPanel % kTileColumns == 0);

inline int64_t padded(int64_t n) { return (n + kPad - 1) / kPad * kPad; }
inline int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }

// Tiles of a whole row of columns: f(first column, vectors as a constant).
template <typename F>
inline __attribute__((always_inline)) void for_tiles(int64_t columns, const F& f) {
    int64_t n = 0;
    for (; n + kTileColumns <= columns; n += kTileColumns) {
        f(n, Tile<kTileRows, kTileVectors>{});
    }
    if constexpr (kTileVectors == 4) {
        switch ((columns - n + kLanes - 1) / kLanes) {
            case 4:
                return f(n, Tile<kTileRows, 4>{});
            case 3:
                return f(n, Tile<kTileRows, 3>{});
            case 2:
                return f(n, Tile<kTileRows, 2>{});
            case 1:
                return f(n, Tile<kTileRows, 1>{});
            default:
                return;
        }
    }
    for (; n < columns; n += kLanes) {
        f(n, Tile<kTileRows, 1>{});
    }
}

template <int kVectors>
inline __attribute__((always_inline)) void store_tile(const Tile<kTileRows, kVectors>& tile,
                                                      float* y, int64_t stride, int64_t rows,
                                                      int64_t columns) {
    for (int64_t r = 0; r < kTileRows; ++r) {
        if (r >= rows) {
            return;
        }
#pragma GCC unroll 4
        for (int v = 0; v < kVectors; ++v) {
            const int64_t left = columns - v * kLanes;
            if (left >= kLanes) {
                store(y + r * stride + v * kLanes, tile.at[r][v]);
            } else if (left > 0) {
                store_lanes(y + r * stride + v * kLanes, tile.at[r][v], static_cast<int>(left));
            }
        }
    }
}

void product_chunk(const Product& p, int64_t begin, int64_t end) {
    // Rows of the last tile: copied, so that the tile may read six.
    float last[kTileRows * kMaxDepth];
    const int64_t whole = begin + (end - begin) / kTileRows * kTileRows;
    for (int64_t i = 0; i < (end - whole) * p.depth; ++i) {
        last[i] = p.x[whole * p.depth + i];
    }
    for (int64_t i = (end - whole) * p.depth; whole < end && i < kTileRows * p.depth; ++i) {
        last[i] = 0.0f;
    }
    for_tiles(p.width, [&](int64_t n, auto tile) {
        for (int64_t t = begin; t < end; t += kTileRows) {
            tile.clear();
            const float* x = t < whole ? p.x + t * p.depth : last;
            const float* panel = p.packed + n / kPanel * kPanel * p.depth + n % kPanel;
            tile.multiply(x, p.depth, 1, panel, kPanel, p.depth);
            store_tile(tile, p.y + t * p.width + n, p.width, end - t, p.width - n);
        }
    });
}

void pack(const Product& p) {
    for (int64_t n = 0; n < p.width; n += kPanel) {
        float* panel = p.packed + n * p.depth;
        const int64_t count = smaller(kPanel, p.width - n);
        if (!p.transposed) {
            pack_panel([&](int64_t j) { return p.weight + (n + j) * p.depth; }, count, p.depth,
                       panel);
            continue;
        }
        for (int64_t k = 0; k < p.depth; ++k) {
            const float* row = p.weight + k * p.width + n;
            for (int64_t j = 0; j < kPanel; ++j) {
                panel[k * kPanel + j] = j < count ? row[j] : 0.0f;
            }
        }
    }
}

// Rows of a strip, padded to whole vectors: they stay in the first-level cache for every tile.
inline int64_t strip_rows(int64_t deep) {
    const int64_t fit = 8192 / deep;
    return fit < 16 ? 16 : smaller(fit, kStrip);
}

void gradient_strip(const Gradient& p, const float* dy, const float* x, int64_t rows, float* sums) {
    const int64_t deep = padded(p.depth);
    // The columns left over by whole tiles, padded to six.
    const int64_t whole = p.width / kTileRows * kTileRows;
    float columns[kStrip * kTileRows];
    for (int64_t i = 0; whole < p.width && i < rows; ++i) {
        for (int64_t r = 0; r < kTileRows; ++r) {
            columns[i * kTileRows + r] = whole + r < p.width ? dy[i * p.width + whole + r] : 0.0f;
        }
    }
    for_tiles(deep, [&](int64_t k, auto tile) {
        for (int64_t n = 0; n < whole; n += kTileRows) {
            tile.clear();
            tile.multiply(dy + n, 1, p.width, x + k, deep, rows);
            tile.add_to(sums + n * deep + k, deep, kTileRows);
        }
        if (whole < p.width) {
            tile.clear();
            tile.multiply(columns, 1, kTileRows, x + k, deep, rows);
            tile.add_to(sums + whole * deep + k, deep, p.width - whole);
        }
    });
}

void gradient_chunk(const Gradient& p, int64_t chunk) {
    const int64_t deep = padded(p.depth), strip = strip_rows(deep);
    float* sums = p.workspace + chunk * (p.width + kStrip) * deep;
    float* x = sums + p.width * deep;
    for (int64_t i = 0; i < p.width * deep; ++i) {
        sums[i] = 0.0f;
    }
    const int64_t end = smaller((chunk + 1) * kGradientChunk, p.total);
    for (int64_t t = chunk * kGradientChunk; t < end; t += strip) {
        const int64_t rows = smaller(strip, end - t);
        for (int64_t i = 0; i < rows; ++i) {
            for_vectors(p.depth, [&](int64_t k, int n) {
                store(x + i * deep + k, load_lanes(p.x + (t + i) * p.depth + k, n));
            });
            for (int64_t k = (p.depth + kLanes - 1) / kLanes * kLanes; k < deep; ++k) {
                x[i * deep + k] = 0.0f;
            }
        }
        gradient_strip(p, p.dy + t * p.width, x, rows, sums);
    }
}

}  // namespace

void product(const Product& p) {
    pack(p);
    parallel_for((p.total + kChunk - 1) / kChunk, p.threads, [&](int64_t c) {
        product_chunk(p, c * kChunk, smaller((c + 1) * kChunk, p.total));
    });
}

void gradient(const Gradient& p) {
    const int64_t chunks = (p.total + kGradientChunk - 1) / kGradientChunk;
    parallel_for(chunks, p.threads, [&](int64_t c) { gradient_chunk(p, c); });
    const int64_t deep = padded(p.depth), stride = (p.width + kStrip) * deep;
    for (int64_t n = 0; n < p.width; ++n) {
        for (int64_t k = 0; k < p.depth; ++k) {
            float sum = 0.0f;
            for (int64_t c = 0; c < chunks; ++c) {
                sum += p.workspace[c * stride + n * deep + k];
            }
            p.dweight[n * p.depth + k] = sum;
        }
    }
}

}  // namespace pylum::linear::PYLUM_ISA
