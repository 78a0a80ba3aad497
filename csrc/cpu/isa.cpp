// Which instruction set the kernels use here.
#include "cpu/isa.hpp"

#include <cstdlib>
#include <string>

#include "tracenet/conv.hpp"
#include "tracenet/cpu_features.hpp"
#include "tracenet/error.hpp"

namespace tracenet {

bool isa_available(Isa isa) {
    const CpuFeatures features = detect_cpu_features();
    switch (isa) {
        case Isa::avx512:
            return features.avx512f;
        case Isa::avx2:
            return features.avx2_fma;
        case Isa::neon:
            return features.neon;
        case Isa::portable:
            break;
    }
    return true;
}

namespace {

Isa choose_isa() {
    const CpuFeatures features = detect_cpu_features();
    const char* wanted = std::getenv("TRACENET_ISA");
    if (wanted == nullptr || *wanted == '\0') return features.best();
    for (const Isa isa : {Isa::portable, Isa::neon, Isa::avx2, Isa::avx512}) {
        if (std::string(wanted) != isa_name(isa)) continue;
        if (isa_available(isa)) return isa;
        throw InputError(std::string("TRACENET_ISA is ") + wanted + ", which this processor lacks; it has " +
                         isa_name(features.best()));
    }
    throw InputError(std::string("TRACENET_ISA is ") + wanted + "; choose avx512, avx2, neon or portable");
}

}  // namespace

Isa active_isa() {
    static const Isa isa = choose_isa();
    return isa;
}

}  // namespace tracenet
