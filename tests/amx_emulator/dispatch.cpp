// Prints the best ISA, the one in use, whose kernels run for bfloat16 and for float32, how often
// the permission was asked for, and why AMX is not to be had.
#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <string>

#include "common/cpu_features.h"
#include "common/tensor.h"

static int requests = 0;

bool fake_cpu_has(const char* feature) {
    const std::string features = std::string(" ") + std::getenv("FAKE_CPU") + " ";
    return features.find(std::string(" ") + feature + " ") != std::string::npos;
}

long fake_syscall(long number, long request, long feature) {
    ++requests;
    const bool right = number == SYS_arch_prctl && request == 0x1023 && feature == 18;
    errno = right ? std::atoi(std::getenv("FAKE_ERRNO")) : EFAULT;
    return errno ? -1 : 0;
}

namespace pylum {
PYLUM_CPU_KERNEL_AMX(const char* kernel())
const char* base::kernel() { return "base"; }
const char* avx2::kernel() { return "avx2"; }
const char* avx512::kernel() { return "avx512"; }
const char* avx512_bf16::kernel() { return "avx512_bf16"; }
const char* amx::kernel() { return "amx"; }

static void print() {
    const char* missing = amx_missing();
    std::printf("%s %s %s %s %d %s\n", isa_name(best_isa()), isa_name(isa()),
                PYLUM_CPU_CALL_AMX(DType::kBFloat16, kernel),
                PYLUM_CPU_CALL_AMX(DType::kFloat32, kernel), requests, missing ? missing : "");
}
}  // namespace pylum

int main() {
    try {
        pylum::print();
    } catch (const std::exception& e) {
        std::printf("%s\n", e.what());
    }
}
