// The engines of sm_90: barriers with phases, copies of tiles and the products of a warpgroup.
#include <cstring>
#include <map>
#include <stdexcept>
#include <vector>

#include "memory.h"

namespace emulator {

bool sm90 = false;
int64_t copied_tiles = 0;

namespace {

constexpr int kGroup = 128;
constexpr int kRowBytes = 128;

struct Landing {
    unsigned char* to;
    Box box;
    int64_t dims[3], bytes[3];
};

struct Phase {
    unsigned count = 0, left = 0, number = 0;
    int64_t bytes = 0;  // still to come
    std::vector<Landing> landings;
    Clock told, ended;  // by those who arrived so far; when the last phase ended
};

struct Product {
    GroupProduct p;
    std::vector<float> sums;  // as they stood, where no earlier product under way has them
    Place place;
};

struct Thread {
    std::vector<Product> open;
    std::vector<std::vector<Product>> committed;
    bool fenced = false;
    int groups_left = 0, registers = 0;
};

std::map<const void*, Phase> phases;
std::vector<Thread> threads;

// Byte of a row in a tile whose chunks are permuted, by the address.
uint32_t permuted(uint32_t offset) { return offset ^ ((offset >> 7 & 7) << 4); }

Phase& phase_of(const void* barrier, const Place& place) {
    const auto found = phases.find(barrier);
    if (found == phases.end()) {
        fail_at("a barrier that no thread has made,", place);
    }
    return found->second;
}

void land(Phase& phase) {
    for (const Landing& l : phase.landings) {
        const int64_t y = l.box.first[1];
        for (int row = 0; row < l.box.rows; ++row) {
            const int64_t z = l.box.first[2] + row;
            const bool inside = y >= 0 && y < l.dims[1] && z >= 0 && z < l.dims[2];
            for (int column = 0; column < kRowBytes / 2; ++column) {
                const int64_t x = l.box.first[0] + column;
                uint16_t value = 0;
                if (inside && x >= 0 && x < l.dims[0]) {
                    memcpy(&value, l.box.at + x * 2 + y * l.bytes[1] + z * l.bytes[2], 2);
                }
                memcpy(l.to + permuted(row * kRowBytes + column * 2), &value, 2);
            }
        }
        end_tile_write(l.to, l.box.rows * kRowBytes);
        phase.bytes -= l.box.rows * kRowBytes;
    }
    phase.landings.clear();
}

void try_to_end(Phase& phase) {
    if (phase.left == 0 && phase.bytes == 0) {
        ++phase.number;
        phase.left = phase.count;
        phase.ended = phase.told;
    }
}

float element(uint64_t tile, int row, int depth, bool transposed, const GroupProduct& p,
              const Place& place) {
    const auto start = static_cast<uint32_t>(tile & 0x3fff) << 4;
    const auto part = static_cast<uint32_t>(tile >> 16 & 0x3fff) << 4;
    const auto stride = static_cast<uint32_t>(tile >> 32 & 0x3fff) << 4;
    uint32_t at = start;
    if (transposed) {
        at += row / 64 * part + depth / 8 * stride + depth % 8 * kRowBytes + row % 64 * 2;
    } else {
        at += row / 8 * stride + row % 8 * kRowBytes + depth * 2;
    }
    at = permuted(at);
    if (tile_in_flight(at)) {
        fail_at("a product reads a tile in flight: issued", place);
    }
    uint16_t bits;
    memcpy(&bits, shared_memory + at, 2);
    return p.to_float(bits);
}

// Product `i` of group `g` of all threads of a warpgroup.
void multiply(int first, size_t g, size_t i) {
    const Product& lead = threads[first].committed[g][i];
    const int columns = 8 * lead.p.count;
    float a[64][16], b[16][256];
    for (int c = 0; c < columns; ++c) {
        for (int k = 0; k < 16; ++k) {
            b[k][c] = element(lead.p.right, c, k, lead.p.transposed, lead.p, lead.place);
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
            a[row][k] = element(lead.p.left, row, k, false, lead.p, lead.place);
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

void phase_init(const void* barrier, unsigned count, const Place& place) {
    const Outside outside;
    shared_offset(barrier, place);
    Phase phase;
    phase.count = phase.left = count;
    phases[barrier] = phase;
}

void phase_arrive(const void* barrier, unsigned bytes, const Place& place) {
    const Outside outside;
    Phase& phase = phase_of(barrier, place);
    if (phase.left == 0) {
        fail_at("more threads arrive at a barrier than its phase has,", place);
    }
    --phase.left;
    phase.bytes += bytes;
    tell(phase.told);
    try_to_end(phase);
}

bool phase_ended(const void* barrier, unsigned parity) {
    const auto found = phases.find(barrier);
    if (found == phases.end()) {
        fail("a thread waits for a barrier that no thread has made");
    }
    Phase& phase = found->second;
    if (phase.number % 2 == parity) {
        land(phase);
        try_to_end(phase);
    }
    return phase.number % 2 != parity;
}

void learn_phase(const void* barrier) { learn(phases.at(barrier).ended); }

void copy_tile(void* to, const Box& box, const void* barrier, const Place& place) {
    const Outside outside;
    Phase& phase = phase_of(barrier, place);
    Landing landing{static_cast<unsigned char*>(to), box, {}, {}};
    memcpy(landing.dims, box.dims, sizeof landing.dims);
    memcpy(landing.bytes, box.bytes, sizeof landing.bytes);
    const int64_t first = std::max(box.first[0], 0);
    const int64_t columns = std::min<int64_t>(box.first[0] + kRowBytes / 2, box.dims[0]) - first;
    for (int row = 0; row < box.rows; ++row) {
        const int64_t z = box.first[2] + row;
        if (columns > 0 && z >= 0 && z < box.dims[2] && box.first[1] >= 0 &&
            box.first[1] < box.dims[1]) {
            in_kernel = true;
            access(box.at + first * 2 + box.first[1] * box.bytes[1] + z * box.bytes[2],
                   static_cast<size_t>(columns) * 2, Access::kRead, place);
            in_kernel = false;
        }
    }
    begin_tile_write(to, static_cast<size_t>(box.rows) * kRowBytes, place);
    tell(phase.told);
    phase.landings.push_back(landing);
    ++copied_tiles;
}

void set_registers(int count, bool more, const Place& place) {
    const Outside outside;
    Thread& own = threads[thread_number()];
    if (own.registers && more != (count > own.registers)) {
        fail_at("registers change the other way,", place);
    }
    own.registers = count;
}

void multiply_group(const GroupProduct& product, const Place& place) {
    const Outside outside;
    Thread& own = threads[thread_number()];
    if (!own.fenced) {
        fail_at("a product of a warpgroup with no group_fence() before it,", place);
    }
    if (thread_number() % kGroup == 0) {
        // Whole rows of eight: what a tile's sixteen columns or rows touch.
        const auto read = [&](uint64_t tile, int rows, bool transposed) {
            const auto start = static_cast<uint32_t>(tile & 0x3fff) << 4;
            const auto part = static_cast<uint32_t>(tile >> 16 & 0x3fff) << 4;
            const auto stride = static_cast<uint32_t>(tile >> 32 & 0x3fff) << 4;
            for (int r = 0; r < (transposed ? 16 : rows); ++r) {
                for (int c = 0; c < (transposed ? rows / 8 : 2); ++c) {
                    tile_read(permuted(start + r / 8 * stride + r % 8 * kRowBytes + c / 8 * part +
                                       c % 8 * 16),
                              16, place);
                }
            }
        };
        read(product.right, 8 * product.count, product.transposed);
        if (!product.of_registers) {
            read(product.left, 64, false);
        }
    }
    Product p{product, {}, place};
    const bool busy = under_way(own, product.d);
    if (product.fresh && busy) {
        fail_at("a product drops sums of one under way,", place);
    }
    if (product.fresh) {
        memset(product.d, 0, 4 * static_cast<size_t>(product.count) * sizeof(float));
    }
    if (!busy) {
        poison(p);
    }
    own.open.push_back(std::move(p));
}

void group_fence() { threads[thread_number()].fenced = true; }

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

void begin_engines() {
    phases.clear();
    threads.assign(1024, Thread{});
}

void end_engines() {
    for (const auto& [barrier, phase] : phases) {
        if (!phase.landings.empty()) {
            throw std::runtime_error("a block ended with a copy of a tile nobody waited for");
        }
    }
    for (const Thread& t : threads) {
        if (!t.open.empty() || !t.committed.empty()) {
            throw std::runtime_error("a block ended with a product nobody waited for");
        }
    }
}

}  // namespace emulator
