// Asks for memory ahead of its use.
#pragma once

#include <cstdint>

namespace pylum {
namespace {

// Without always_inline GCC finds the function free of effects and drops the calls.
[[gnu::always_inline]] inline void prefetch(const void* data, int64_t bytes) {
    for (int64_t byte = 0; byte < bytes; byte += 64) {
        __builtin_prefetch(static_cast<const char*>(data) + byte);
    }
}

}  // namespace
}  // namespace pylum
