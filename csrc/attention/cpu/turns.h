// Pieces of rows that add to the same sums of keys, on several threads: each follows the piece
// before it from key to key, so that every sum keeps the order that one thread gives it.
#pragma once

#include <sched.h>

#include <cstdint>

namespace pylum::attention {
namespace {

constexpr int64_t kAllKeys = INT64_MAX;
constexpr int kSpins = 256;  // before the thread lets others run

template <typename F>
inline void wait_until(const F& done) {
    for (int spins = 0; !done(); ++spins) {
        if (spins >= kSpins) {
            sched_yield();
        }
    }
}

// Marks count keys: below a mark all are passed, by its piece and every one before it.
struct Turn {
    const int64_t* before =
        nullptr;             // mark of the piece before; null: nobody adds at the same time
    int64_t* own = nullptr;  // null: nobody follows

    void wait(int64_t keys) const {
        if (before) {
            wait_until([&] { return __atomic_load_n(before, __ATOMIC_ACQUIRE) >= keys; });
        }
    }
    void pass(int64_t keys) const {
        if (own) {
            __atomic_store_n(own, keys, __ATOMIC_RELEASE);
        }
    }
};

}  // namespace
}  // namespace pylum::attention
