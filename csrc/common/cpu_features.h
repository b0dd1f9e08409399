// Which instruction set the CPU kernels run on: found once from cpuid, overridden by PYLUM_ISA.
#pragma once

namespace pylum {

// kAvx512Bf16: AVX-512 with products of bfloat16 pairs, for bfloat16 in the rooms that gain by it;
// elsewhere it is kAvx512. kAmx: the same with products of tiles.
enum class Isa { kBase, kAvx2, kAvx512, kAvx512Bf16, kAmx };

// The ISA in use. Throws std::runtime_error where PYLUM_ISA asks for one that is unknown or absent.
Isa isa();
const char* isa_name(Isa isa);
// The ISA that suits this machine and build best.
Isa best_isa();
// Why AMX is not to be had, or null where it is. The first call asks the kernel for the permission
// to use tiles, which threads and children inherit.
const char* amx_missing();

}  // namespace pylum

// PYLUM_CPU_KERNEL(void forward(const Params&)) declares the function in each ISA's namespace;
// PYLUM_CPU_CALL(forward, params) calls the one in use. Both stand in the room's namespace.
#ifdef PYLUM_X86
#define PYLUM_CPU_KERNEL(...) \
    namespace base {          \
    __VA_ARGS__;              \
    }                         \
    namespace avx2 {          \
    __VA_ARGS__;              \
    }                         \
    namespace avx512 {        \
    __VA_ARGS__;              \
    }
#define PYLUM_CPU_CALL(fn, ...)                                        \
    (::pylum::isa() >= ::pylum::Isa::kAvx512 ? avx512::fn(__VA_ARGS__) \
     : ::pylum::isa() == ::pylum::Isa::kAvx2 ? avx2::fn(__VA_ARGS__)   \
                                             : base::fn(__VA_ARGS__))
#else
#define PYLUM_CPU_KERNEL(...) \
    namespace base {          \
    __VA_ARGS__;              \
    }
#define PYLUM_CPU_CALL(fn, ...) base::fn(__VA_ARGS__)
#endif

// The same for rooms with files of their own for bfloat16 on AVX512-BF16 (BF16 in pylum_add_op).
#ifdef PYLUM_X86
#define PYLUM_CPU_KERNEL_BF16(...) \
    PYLUM_CPU_KERNEL(__VA_ARGS__)  \
    namespace avx512_bf16 {        \
    __VA_ARGS__;                   \
    }
#define PYLUM_CPU_CALL_BF16(dtype, fn, ...)                                              \
    (::pylum::isa() == ::pylum::Isa::kAvx512Bf16 && (dtype) == ::pylum::DType::kBFloat16 \
         ? avx512_bf16::fn(__VA_ARGS__)                                                  \
         : PYLUM_CPU_CALL(fn, __VA_ARGS__))
#else
#define PYLUM_CPU_KERNEL_BF16(...) PYLUM_CPU_KERNEL(__VA_ARGS__)
#define PYLUM_CPU_CALL_BF16(dtype, fn, ...) PYLUM_CPU_CALL(fn, __VA_ARGS__)
#endif

// The same for rooms with files for bfloat16 on AMX too (AMX in pylum_add_op).
#ifdef PYLUM_AMX
#define PYLUM_CPU_KERNEL_AMX(...)      \
    PYLUM_CPU_KERNEL_BF16(__VA_ARGS__) \
    namespace amx {                    \
    __VA_ARGS__;                       \
    }
#define PYLUM_CPU_CALL_AMX(dtype, fn, ...)                                        \
    (::pylum::isa() == ::pylum::Isa::kAmx && (dtype) == ::pylum::DType::kBFloat16 \
         ? amx::fn(__VA_ARGS__)                                                   \
         : PYLUM_CPU_CALL_BF16(dtype, fn, __VA_ARGS__))
#else
#define PYLUM_CPU_KERNEL_AMX(...) PYLUM_CPU_KERNEL_BF16(__VA_ARGS__)
#define PYLUM_CPU_CALL_AMX(dtype, fn, ...) PYLUM_CPU_CALL_BF16(dtype, fn, __VA_ARGS__)
#endif
