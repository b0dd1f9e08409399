// What the compiler calls at every access, and where in the source a report lies.
#include <dlfcn.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>

#include "memory.h"

namespace emulator {
namespace {

std::string run(const std::string& command) {
    std::string text;
    if (FILE* pipe = popen(command.c_str(), "r")) {
        char line[512];
        while (fgets(line, sizeof line, pipe)) {
            text += line;
        }
        pclose(pipe);
    }
    return text;
}

// "file:line", of the innermost inlined call that lies in a kernel's file.
std::string place_of(const void* code, const Place* place) {
    if (place) {
        return describe(*place);
    }
    Dl_info info;
    if (!dladdr(code, &info)) {
        return "unknown";
    }
    char command[1200];
    snprintf(command, sizeof command, "addr2line -ie '%s' 0x%zx 2>/dev/null", info.dli_fname,
             reinterpret_cast<size_t>(code) - reinterpret_cast<size_t>(info.dli_fbase) - 1);
    const std::string text = run(command);
    std::string best;
    for (size_t begin = 0; begin < text.size();) {
        const size_t end = std::min(text.find('\n', begin), text.size());
        const std::string line = text.substr(begin, end - begin);
        if (best.empty() ||
            (best.find(".cu:") == std::string::npos && line.find(".cu:") != std::string::npos)) {
            best = line;
        }
        begin = end + 1;
    }
    return best.empty() ? "unknown (no addr2line)" : from_root(best);
}

}  // namespace

void report(const std::string& what, const void* at, size_t size, const Memory* in,
            const void* code, const Place* place) {
    std::string text = what + " of " + std::to_string(size) + " bytes at ";
    if (in) {
        text += "byte " + std::to_string(reinterpret_cast<uintptr_t>(at) - in->begin) + " of " +
                in->name;
    } else {
        char number[32];
        snprintf(number, sizeof number, "%p", at);
        text += number;
    }
    fail(text + ": " + place_of(code, place));
}

}  // namespace emulator

#ifndef __SANITIZE_ADDRESS__
using emulator::Access;

#define HOOK(name, size, kind)                                                          \
    extern "C" void name(void* at) {                                                    \
        emulator::access(at, size, Access::kind, __builtin_return_address(0), nullptr); \
    }
#define HOOKS(size)                                \
    HOOK(__tsan_read##size, size, kRead)           \
    HOOK(__tsan_write##size, size, kWrite)         \
    HOOK(__tsan_unaligned_read##size, size, kRead) \
    HOOK(__tsan_unaligned_write##size, size, kWrite)
HOOKS(1)
HOOKS(2)
HOOKS(4)
HOOKS(8)
HOOKS(16)

extern "C" {
void __tsan_init() {}
void __tsan_func_entry(void*) {}
void __tsan_func_exit() {}
void __tsan_vptr_update(void**, void*) {}
void __tsan_read_range(void* at, size_t size) {
    for (size_t i = 0; i < size; ++i) {
        emulator::access(static_cast<char*>(at) + i, 1, Access::kRead, __builtin_return_address(0),
                         nullptr);
    }
}
void __tsan_write_range(void* at, size_t size) {
    for (size_t i = 0; i < size; ++i) {
        emulator::access(static_cast<char*>(at) + i, 1, Access::kWrite, __builtin_return_address(0),
                         nullptr);
    }
}

// What -fsanitize=undefined calls: the leading member of its data is the place.
struct SourcePlace {
    const char* file;
    uint32_t line, column;
};
static void sanitizer_report(const SourcePlace* place, const std::string& what) {
    const std::string text =
        what + ": " + emulator::from_root(place->file) + ":" + std::to_string(place->line);
    if (emulator::thread_number() < 0) {
        fprintf(stderr, "%s\n", text.c_str());
        abort();
    }
    emulator::fail(text);
}
void __ubsan_handle_out_of_bounds(SourcePlace* place, uintptr_t index) {
    emulator::in_kernel = false;
    sanitizer_report(place, "out of bounds: index " + std::to_string(index));
}
void __ubsan_handle_type_mismatch_v1(SourcePlace* place, uintptr_t at) {
    emulator::in_kernel = false;
    sanitizer_report(place, at ? "misaligned: access" : "null: access");
}
#define UNDEFINED(name, what)                        \
    void __ubsan_handle_##name(SourcePlace* place) { \
        emulator::in_kernel = false;                 \
        sanitizer_report(place, "undefined: " what); \
    }
UNDEFINED(add_overflow, "an overflow of +")
UNDEFINED(sub_overflow, "an overflow of -")
UNDEFINED(mul_overflow, "an overflow of *")
UNDEFINED(negate_overflow, "an overflow of a negation")
UNDEFINED(divrem_overflow, "a division by zero, or beyond the type")
UNDEFINED(shift_out_of_bounds, "a shift beyond the type")
UNDEFINED(float_cast_overflow, "a conversion beyond the type")
UNDEFINED(load_invalid_value, "a value that its type does not have")
UNDEFINED(pointer_overflow, "an overflow of a pointer")
UNDEFINED(builtin_unreachable, "code that is never reached")
UNDEFINED(missing_return, "the end of a function without a result")
UNDEFINED(nonnull_arg, "a null argument")
UNDEFINED(invalid_builtin, "a count of zeros of zero")
}
#endif
