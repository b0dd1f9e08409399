// Blocks one after another, the fibers of each until all have ended.
#include <cstring>
#include <memory>
#include <set>
#include <stdexcept>

#include "fibers.h"

namespace emulator {

unsigned char* shared_memory = nullptr;
bool backwards = false;

namespace {

std::string ranges(const std::vector<int>& threads) {
    std::string text;
    for (size_t i = 0; i < threads.size();) {
        size_t j = i;
        while (j + 1 < threads.size() && threads[j + 1] == threads[j] + 1) {
            ++j;
        }
        text += (text.empty() ? "" : ", ") + std::to_string(threads[i]);
        text += j > i ? "-" + std::to_string(threads[j]) : "";
        i = j + 1;
    }
    return text;
}

std::string block_name() {
    return " (block " + std::to_string(blockIdx.x) + ", " + std::to_string(blockIdx.y) + ", " +
           std::to_string(blockIdx.z) + ")";
}

// Every thread waits or has ended: opens the barrier, or throws. False where all have ended.
bool release() {
    bool any = false, same = true;
    const Fiber* first = nullptr;
    for (const Fiber& f : s.fibers) {
        if (f.state == State::kEnded) {
            continue;
        }
        any = true;
        same = same && f.state == State::kBarrier;
        first = first ? first : &f;
        same = same && f.place.line() == first->place.line() &&
               !strcmp(f.place.file_name(), first->place.file_name());
    }
    if (!any) {
        return false;
    }
    if (!same) {
        throw std::runtime_error("threads of a block wait at different places" + waiting() +
                                 block_name());
    }
    for (Fiber& f : s.fibers) {
        f.state = f.state == State::kBarrier ? State::kReady : f.state;
    }
    ++s.barriers;
    s.predicates[s.barriers % 2] = false;
    next_block_epoch();
    return true;
}

// A phase that has ended lets its threads go on.
bool end_phases() {
    bool any = false;
    for (Fiber& f : s.fibers) {
        if (f.state == State::kPhase && phase_ended(f.barrier, f.parity)) {
            f.state = State::kReady;
        }
        any = any || f.state == State::kReady;
    }
    return any;
}

void run_block() {
    const int count = static_cast<int>(s.fibers.size());
    const int warps = (count + kWarp - 1) / kWarp;
    do {
        for (int i = 0; i < warps; ++i) {
            const int warp = backwards ? warps - 1 - i : i;
            const int end = std::min(count, (warp + 1) * kWarp);
            for (bool moved = true; moved;) {
                moved = false;
                for (int t = warp * kWarp; t < end; ++t) {
                    if (s.fibers[t].state == State::kReady) {
                        enter(t);
                        moved = true;
                    }
                }
            }
        }
    } while (end_phases() || release());
}

void leave_device() {
    s.current = -1;
    begin_thread(-1, 0);
}

}  // namespace

std::string waiting() {
    std::set<std::string> places;
    for (const Fiber& f : s.fibers) {
        places.insert(f.state == State::kEnded ? "" : describe(f.place));
    }
    std::string text;
    for (const std::string& place : places) {
        std::vector<int> threads;
        for (size_t i = 0; i < s.fibers.size(); ++i) {
            const Fiber& f = s.fibers[i];
            if ((f.state == State::kEnded ? "" : describe(f.place)) == place) {
                threads.push_back(static_cast<int>(i));
            }
        }
        text +=
            "; threads " + ranges(threads) + (place.empty() ? " have ended" : " wait at " + place);
    }
    return text;
}

int thread_number() { return s.current; }
int lane() { return s.current % kWarp; }

std::string describe(const Place& place) {
    return from_root(place.file_name()) + ":" + std::to_string(place.line());
}

std::string from_root(const std::string& path) {
    const size_t at = std::max(path.rfind("/csrc/") + 1, path.rfind("/tests/") + 1);
    return path.substr(at);
}

void fail_at(const char* what, const Place& place) {
    in_kernel = false;
    fail(std::string(what) + " at " + describe(place));
}

void fail(const std::string& message) {
    in_kernel = false;
    s.failure = message + " (thread " + std::to_string(s.current) + ")" + block_name();
    leave();
    __builtin_unreachable();
}

void launch(dim3 grid, dim3 block, size_t shared_bytes, void (*body)(void*), void* context) {
    const size_t threads = static_cast<size_t>(block.x) * block.y * block.z;
    if (threads == 0 || threads > 1024) {
        throw std::runtime_error("a block must have 1 to 1024 threads, got " +
                                 std::to_string(threads));
    }
    if (grid.y > 65535 || grid.z > 65535 || grid.x > 2147483647u || shared_bytes > (227 << 10)) {
        throw std::runtime_error("a launch is larger than a device takes");
    }
    reserve_stacks(threads);
    // The exact size, so that what lies past it is not shared memory.
    std::unique_ptr<unsigned char[]> shared(new unsigned char[shared_bytes + 1024]);
    auto* at = reinterpret_cast<unsigned char*>((reinterpret_cast<uintptr_t>(shared.get()) + 1023) /
                                                1024 * 1024);
    shared_memory = at;
    s.body = body;
    s.context = context;
    s.failure.clear();
    blockDim = block;
    gridDim = grid;
    begin_launch();
    const uint64_t blocks = static_cast<uint64_t>(grid.x) * grid.y * grid.z;
    for (uint64_t i = 0; i < blocks; ++i) {
        const uint64_t b = backwards ? blocks - 1 - i : i;
        blockIdx =
            dim3(static_cast<unsigned>(b % grid.x), static_cast<unsigned>(b / grid.x % grid.y),
                 static_cast<unsigned>(b / grid.x / grid.y));
        memset(at, 0xff, shared_bytes);  // NaN in every floating type
        begin_fibers(block);
        begin_block(at, shared_bytes);
        try {
            run_block();
            end_block();
        } catch (...) {
            leave_device();
            throw;
        }
        leave_device();
    }
}

}  // namespace emulator
