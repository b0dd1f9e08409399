// The emulated module holds CUDA kernels only.
#pragma once

#include <stdexcept>

#define PYLUM_CPU_KERNEL(...)
#define PYLUM_CPU_CALL(fn, ...) throw std::logic_error("the emulated module has no CPU kernels")
