# Language level, warnings, ISA list and CUDA options.

set(PYLUM_CUDA AUTO CACHE STRING "Build CUDA code: AUTO (where nvcc is found), ON, OFF")
set(PYLUM_CUDA_ARCHS "" CACHE STRING "CUDA architectures, e.g. 80;90a; empty: the default list")
set(CMAKE_EXPORT_COMPILE_COMMANDS ON)
set(CMAKE_CXX_STANDARD 20)
set(CMAKE_CXX_STANDARD_REQUIRED ON)
set(CMAKE_POSITION_INDEPENDENT_CODE ON)
if(NOT CMAKE_BUILD_TYPE)
  set(CMAKE_BUILD_TYPE Release CACHE STRING "" FORCE)
endif()
set(CMAKE_CXX_FLAGS_RELEASE "-O3")

# Every portable kernel is compiled once per ISA of this list; csrc/common/cpu_features.cpp chooses.
set(PYLUM_ISAS base)
if(CMAKE_SYSTEM_PROCESSOR MATCHES "x86_64|AMD64")
  list(APPEND PYLUM_ISAS avx2 avx512)
endif()
set(PYLUM_FLAGS_base "")
set(PYLUM_FLAGS_avx2 -mavx2 -mfma -mf16c)
set(PYLUM_FLAGS_avx512 -mavx512f -mavx512bw -mavx512dq -mavx512vl -mavx2 -mfma -mf16c
                       -mprefer-vector-width=512)

# Flags of the files that BF16 and AMX of pylum_add_op add. Tiles are written in assembly.
set(PYLUM_FLAGS_avx512_bf16 ${PYLUM_FLAGS_avx512} -mavx512bf16)
set(PYLUM_FLAGS_amx ${PYLUM_FLAGS_avx512_bf16} -DPYLUM_TILES=1)
if("avx512" IN_LIST PYLUM_ISAS AND CMAKE_SYSTEM_NAME STREQUAL "Linux")
  include(CheckCXXSourceCompiles)
  check_cxx_source_compiles("int main() { asm volatile(\"tdpbf16ps %tmm2, %tmm1, %tmm0\"); }"
                            PYLUM_AMX)
endif()

function(pylum_compile_options target)
  target_compile_options(
    ${target} PRIVATE $<$<COMPILE_LANGUAGE:CXX>:-Wall -Wextra -Werror -fno-math-errno
                      -fno-trapping-math -ffp-contract=fast>)
  if(CMAKE_CXX_COMPILER_ID STREQUAL "GNU")
    # GCC 12 sees overlaps in std::string's operator+ that are not there (its bug 105651).
    target_compile_options(${target} PRIVATE $<$<COMPILE_LANGUAGE:CXX>:-Wno-restrict>)
  endif()
  list(LENGTH PYLUM_ISAS count)
  if(count GREATER 1)
    target_compile_definitions(${target} PRIVATE PYLUM_X86=1)
  endif()
  if(PYLUM_AMX)
    target_compile_definitions(${target} PRIVATE PYLUM_AMX=1)
  endif()
endfunction()
