// The emulated module holds CUDA kernels only.
#pragma once

#include <stdexcept>

#define PYLUM_CPU_KERNEL(...)
#define PYLUM_CPU_KERNEL_BF16(...)
#define PYLUM_CPU_KERNEL_AMX(...)
#define PYLUM_CPU_CALL_AMX(dtype, fn, ...) PYLUM_CPU_CALL(fn, __VA_ARGS__)
#define PYLUM_CPU_CALL_BF16(dtype, fn, ...) PYLUM_CPU_CALL(fn, __VA_ARGS__)
#define PYLUM_CPU_CALL(fn, ...) throw std::logic_error("the emulated module has no CPU kernels")
