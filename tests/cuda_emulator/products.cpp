// The engine of sm_90 that multiplies tiles for a warpgroup.
#include <algorithm>
#include <cstring>
#include <stdexcept>
#include <vector>

#include "memory.h"

namespace emulator {
namespace {

struct Product {
    GroupProduct p;
    std::vector<float> sums;  // as they stood, where no earlier product under way has them
    Place place;
    std::vector<unsigned char> tiles;  // as they stood; of a warpgroup's first thread
};

// Registers that products have added to, and what they held at the last group_fence().
struct Sums {
    const float* d;
    size_t size;
    std::vector<float> fenced;  // empty where a product was under way
};

struct Thread {
    std::vector<Product> open;
    std::vector<std::vector<Product>> committed;
    std::vector<Sums> sums;
    bool fenced = false;
    int groups_left = 0;
};

std::vector<Thread> threads;

float element(uint64_t tile, int row, int depth, bool transposed, const GroupProduct& p) {
    const auto start = static_cast<uint32_t>(tile & 0x3fff) << 4;
    const auto part = static_cast<uint32_t>(tile >> 16 & 0x3fff) << 4;
    const auto stride = static_cast<uint32_t>(tile >> 32 & 0x3fff) << 4;
    uint32_t at = start;
    if (transposed) {
        at += row / 64 * part + depth / 8 * stride + depth % 8 * kRowBytes + row % 64 * 2;
    } else {
        at += row / 8 * stride + row % 8 * kRowBytes + depth * 2;
    }
    uint16_t bits;
    memcpy(&bits, shared_memory + permuted(at), 2);
    return p.to_float(bits);
}

// Calls f(offset) for every 16 bytes of the product's tiles, in whole rows of eight.
template <typename F>
void for_tiles(const GroupProduct& product, const F& f) {
    const auto visit = [&](uint64_t tile, int rows, bool transposed) {
        const auto start = static_cast<uint32_t>(tile & 0x3fff) << 4;
        const auto part = static_cast<uint32_t>(tile >> 16 & 0x3fff) << 4;
        const auto stride = static_cast<uint32_t>(tile >> 32 & 0x3fff) << 4;
        for (int r = 0; r < (transposed ? 16 : rows); ++r) {
            for (int c = 0; c < (transposed ? rows / 8 : 2); ++c) {
                f(permuted(start + r / 8 * stride + r % 8 * kRowBytes + c / 8 * part + c % 8 * 16));
            }
        }
    };
    visit(product.right, 8 * product.count, product.transposed);
    if (!product.of_registers) {
        visit(product.left, 64, false);
    }
}

void check_tiles(const Product& product) {
    size_t at = 0;
    for_tiles(product.p, [&](uint32_t offset) {
        if (tile_in_flight(offset)) {
            fail_at("a product reads a tile in flight: issued", product.place);
        }
        if (memcmp(product.tiles.data() + at, shared_memory + offset, 16) != 0) {
            fail_at("a tile was overwritten while a product read it: issued", product.place);
        }
        at += 16;
    });
}

// Product `i` of group `g` of all threads of a warpgroup.
void multiply(int first, size_t g, size_t i) {
    const Product& lead = threads[first].committed[g][i];
    const int columns = 8 * lead.p.count;
    check_tiles(lead);
    float a[64][16], b[16][256];
    for (int c = 0; c < columns; ++c) {
        for (int k = 0; k < 16; ++k) {
            b[k][c] = element(lead.p.right, c, k, lead.p.transposed, lead.p);
        }
    }
    for (int t = 0; t < kGroup; ++t) {
        const GroupProduct& p = threads[first + t].committed[g][i].p;
        const int row = t / 32 * 16 + t % 32 / 4, depth = t % 4 * 2;
        for (int e = 0; e < 8 && p.of_registers; ++e) {
            const int part = e / 2;
            a[row + part % 2 * 8][depth + part / 2 * 8 + e % 2] =
                p.to_float(static_cast<uint16_t>(p.a[part] >> (e % 2 * 16)));
        }
    }
    for (int row = 0; row < 64 && !lead.p.of_registers; ++row) {
        for (int k = 0; k < 16; ++k) {
            a[row][k] = element(lead.p.left, row, k, false, lead.p);
        }
    }
    for (int row = 0; row < 64; ++row) {
        float sums[256] = {};
        for (int k = 0; k < 16; ++k) {
            for (int c = 0; c < columns; ++c) {
                sums[c] += a[row][k] * b[k][c];
            }
        }
        for (int c = 0; c < columns; ++c) {
            const int t = row / 16 * 32 + row % 8 * 4 + c % 8 / 2;
            threads[first + t].committed[g][i].p.d[c / 8 * 4 + row % 16 / 8 * 2 + c % 2] += sums[c];
        }
    }
}

const float kPoison = [] {
    float x;
    memset(&x, 0xff, sizeof x);
    return x;
}();

void poison(Product& product) {
    const size_t size = 4 * static_cast<size_t>(product.p.count);
    product.sums.assign(product.p.d, product.p.d + size);
    memset(product.p.d, 0xff, size * sizeof(float));
}

bool under_way(const Thread& t, const float* d) {
    for (const auto& group : t.committed) {
        for (const Product& p : group) {
            if (p.p.d == d) {
                return true;
            }
        }
    }
    for (const Product& p : t.open) {
        if (p.p.d == d) {
            return true;
        }
    }
    return false;
}

// As it stands in the thread's registers, which ASan may know as those of an ended block of code.
__attribute__((no_sanitize("address"))) std::vector<float> content(const float* d, size_t size) {
    std::vector<float> copy(size);
    float* to = copy.data();
    for (size_t i = 0; i < size; ++i) {
        const_cast<volatile float*>(to)[i] = d[i];
    }
    return copy;
}

bool same_bits(const std::vector<float>& x, const std::vector<float>& y) {
    return memcmp(x.data(), y.data(), x.size() * sizeof(float)) == 0;
}

// The sums of products that still run are NaN again.
void hide(Thread& t) {
    std::vector<float*> seen;
    const auto visit = [&](std::vector<Product>& group) {
        for (Product& p : group) {
            bool first = true;
            for (const float* d : seen) {
                first = first && d != p.p.d;
            }
            if (first && p.sums.empty()) {
                poison(p);
            }
            seen.push_back(p.p.d);
        }
    };
    for (auto& group : t.committed) {
        visit(group);
    }
    visit(t.open);
}

void finish(int first) {
    const Thread& lead = threads[first];
    for (int t = 1; t < kGroup; ++t) {
        const Thread& other = threads[first + t];
        bool same = other.committed.size() == lead.committed.size() &&
                    other.groups_left == lead.groups_left;
        for (size_t g = 0; same && g < lead.committed.size(); ++g) {
            same = other.committed[g].size() == lead.committed[g].size();
            for (size_t i = 0; same && i < lead.committed[g].size(); ++i) {
                const GroupProduct &x = other.committed[g][i].p, &y = lead.committed[g][i].p;
                same = x.left == y.left && x.right == y.right && x.count == y.count &&
                       x.transposed == y.transposed && x.of_registers == y.of_registers;
            }
        }
        if (!same) {
            fail("threads of a warpgroup wait for different products");
        }
    }
    const size_t left = static_cast<size_t>(lead.groups_left);
    const size_t count = lead.committed.size() > left ? lead.committed.size() - left : 0;
    for (size_t g = 0; g < count; ++g) {
        for (size_t i = 0; i < lead.committed[g].size(); ++i) {
            for (int t = 0; t < kGroup; ++t) {
                Product& p = threads[first + t].committed[g][i];
                if (!p.sums.empty()) {
                    if (!same_bits(content(p.p.d, p.sums.size()),
                                   std::vector<float>(p.sums.size(), kPoison))) {
                        fail_at("the sums of a product under way were written to: issued", p.place);
                    }
                    memcpy(p.p.d, p.sums.data(), p.sums.size() * sizeof(float));
                }
            }
            multiply(first, g, i);
        }
    }
    for (int t = 0; t < kGroup; ++t) {
        Thread& own = threads[first + t];
        own.committed.erase(own.committed.begin(),
                            own.committed.begin() + static_cast<ptrdiff_t>(count));
        hide(own);
        own.fenced = false;
    }
}

}  // namespace

void multiply_group(const GroupProduct& product, const Place& place) {
    const Outside outside;
    Thread& own = threads[thread_number()];
    if (!own.fenced) {
        fail_at("a product of a warpgroup with no group_fence() before it,", place);
    }
    Product p{product, {}, place, {}};
    if (thread_number() % kGroup == 0) {
        for_tiles(product, [&](uint32_t offset) {
            tile_read(offset, 16, place);
            p.tiles.insert(p.tiles.end(), shared_memory + offset, shared_memory + offset + 16);
        });
    }
    const size_t size = 4 * static_cast<size_t>(product.count);
    const bool busy = under_way(own, product.d);
    if (product.fresh && busy) {
        fail_at("a product drops sums of one under way,", place);
    }
    const auto known = std::find_if(own.sums.begin(), own.sums.end(),
                                    [&](const Sums& s) { return s.d == product.d; });
    if (known == own.sums.end()) {
        own.sums.push_back({product.d, size, {}});
    } else if (!busy && !product.fresh && known->size == size && !known->fenced.empty() &&
               !same_bits(known->fenced, content(product.d, size))) {
        fail_at("the sums of a product were touched with no group_fence() after it,", place);
    }
    if (product.fresh) {
        memset(product.d, 0, size * sizeof(float));
    }
    if (!busy) {
        poison(p);
    }
    own.open.push_back(std::move(p));
}

void group_fence() {
    const Outside outside;
    Thread& own = threads[thread_number()];
    own.fenced = true;
    for (Sums& s : own.sums) {
        s.fenced = under_way(own, s.d) ? std::vector<float>() : content(s.d, s.size);
    }
}

void group_commit() {
    const Outside outside;
    Thread& own = threads[thread_number()];
    own.committed.push_back(std::move(own.open));
    own.open.clear();
}

void group_wait(int groups_left, const Place& place) {
    const Outside outside;
    threads[thread_number()].groups_left = groups_left;
    warpgroup_meet(finish, place);
}

void begin_products() { threads.assign(1024, Thread{}); }

void end_products() {
    for (const Thread& t : threads) {
        if (!t.open.empty() || !t.committed.empty()) {
            throw std::runtime_error("a block ended with a product nobody waited for");
        }
    }
}

}  // namespace emulator
