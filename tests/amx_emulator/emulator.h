// What the emulated tiles have seen, of all threads.
#pragma once

#include <cstdint>
#include <string>

namespace amx_emulator {

struct Counts {
    int64_t products, loads, stores;
};

// Since the last call.
Counts take_counts();
// The first misuse since the last call, or nothing. Its instruction gave NaN.
std::string take_fault();

}  // namespace amx_emulator
