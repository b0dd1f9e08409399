// The emulated module holds kernels for AMX only.
#pragma once

#include <stdexcept>

namespace pylum {
enum class Isa { kBase, kAvx2, kAvx512, kAvx512Bf16, kAmx };
inline Isa isa() { return Isa::kAmx; }
}  // namespace pylum

#define PYLUM_CPU_KERNEL(...)
#define PYLUM_CPU_KERNEL_BF16(...)
#define PYLUM_CPU_KERNEL_AMX(...) \
    namespace amx {               \
    __VA_ARGS__;                  \
    }
#define PYLUM_CPU_CALL(fn, ...) throw std::logic_error(#fn " has no kernel for AMX")
#define PYLUM_CPU_CALL_BF16(dtype, fn, ...) PYLUM_CPU_CALL(fn, __VA_ARGS__)
#define PYLUM_CPU_CALL_AMX(dtype, fn, ...) amx::fn(__VA_ARGS__)
