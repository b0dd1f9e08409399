#include "common/cpu_features.h"

#include <cstdlib>
#include <stdexcept>
#include <string>
#ifdef PYLUM_AMX
#include <sys/syscall.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#endif

namespace pylum {

// Without the permission the first tile operation would end the process, though cpuid offers it.
static std::string request_amx() {
#ifdef PYLUM_AMX
    if (!__builtin_cpu_supports("amx-tile") || !__builtin_cpu_supports("amx-bf16") ||
        !__builtin_cpu_supports("avx512bf16")) {
        return "this CPU has no amx-bf16";
    }
    constexpr long kRequestPermission = 0x1023, kTileData = 18;
    if (syscall(SYS_arch_prctl, kRequestPermission, kTileData) != 0) {
        return std::string("the kernel refuses the permission for tiles: ") + std::strerror(errno);
    }
    return "";
#else
    return "not built";
#endif
}

const char* amx_missing() {
    static const std::string reason = request_amx();
    return reason.empty() ? nullptr : reason.c_str();
}

static bool offers(Isa isa) {
#ifdef PYLUM_X86
    const bool avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                        __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
    switch (isa) {
        case Isa::kBase:
            return true;
        case Isa::kAvx2:
            return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
        case Isa::kAvx512:
            return avx512;
        case Isa::kAvx512Bf16:
            return avx512 && __builtin_cpu_supports("avx512bf16");
        case Isa::kAmx:
            return avx512 && !amx_missing();
    }
#endif
    return isa == Isa::kBase;
}

Isa best_isa() {
    if (offers(Isa::kAmx)) {
        return Isa::kAmx;
    }
#ifdef PYLUM_X86
    // A product of pairs costs AMD one multiply-add, but Intel, up to Sapphire Rapids, four.
    if (offers(Isa::kAvx512Bf16) && __builtin_cpu_is("amd")) {
        return Isa::kAvx512Bf16;
    }
#endif
    return offers(Isa::kAvx512) ? Isa::kAvx512 : offers(Isa::kAvx2) ? Isa::kAvx2 : Isa::kBase;
}

const char* isa_name(Isa isa) {
    switch (isa) {
        case Isa::kBase:
            return "base";
        case Isa::kAvx2:
            return "avx2";
        case Isa::kAvx512:
            return "avx512";
        case Isa::kAvx512Bf16:
            return "avx512_bf16";
        case Isa::kAmx:
            return "amx";
    }
    return "unknown";
}

static Isa choose() {
    const char* wish = std::getenv("PYLUM_ISA");
    if (!wish || !*wish) {
        return best_isa();
    }
    for (Isa isa : {Isa::kBase, Isa::kAvx2, Isa::kAvx512, Isa::kAvx512Bf16, Isa::kAmx}) {
        if (std::string(wish) == isa_name(isa)) {
            if (!offers(isa)) {
                const std::string why =
                    isa == Isa::kAmx ? std::string(" (") + amx_missing() + ")" : "";
                throw std::runtime_error(
                    std::string("PYLUM_ISA=") + wish +
                    " was asked for, but this machine and build offer at most " +
                    isa_name(best_isa()) + why);
            }
            return isa;
        }
    }
    throw std::runtime_error(
        std::string("PYLUM_ISA must be base, avx2, avx512, avx512_bf16 or amx, got ") + wish);
}

Isa isa() {
    static const Isa chosen = choose();
    return chosen;
}

}  // namespace pylum
