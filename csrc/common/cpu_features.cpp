#include "common/cpu_features.h"

#include <cstdlib>
#include <stdexcept>
#include <string>

namespace pylum {

Isa best_isa() {
#ifdef PYLUM_X86
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
        __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl")) {
        return Isa::kAvx512;
    }
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) {
        return Isa::kAvx2;
    }
#endif
    return Isa::kBase;
}

const char* isa_name(Isa isa) {
    switch (isa) {
        case Isa::kBase:
            return "base";
        case Isa::kAvx2:
            return "avx2";
        case Isa::kAvx512:
            return "avx512";
    }
    return "unknown";
}

static Isa choose() {
    const char* wish = std::getenv("PYLUM_ISA");
    const Isa best = best_isa();
    if (!wish || !*wish) {
        return best;
    }
    for (Isa isa : {Isa::kBase, Isa::kAvx2, Isa::kAvx512}) {
        if (std::string(wish) == isa_name(isa)) {
            if (isa > best) {
                throw std::runtime_error(
                    std::string("PYLUM_ISA=") + wish +
                    " was asked for, but this machine and build offer at most " + isa_name(best));
            }
            return isa;
        }
    }
    throw std::runtime_error(std::string("PYLUM_ISA must be base, avx2 or avx512, got ") + wish);
}

Isa isa() {
    static const Isa chosen = choose();
    return chosen;
}

}  // namespace pylum
