// What the processor at run time can do, so that one binary carries kernels for several.
#pragma once

namespace tracenet {

// Instruction sets kernels are written for, weakest first.
enum class Isa { portable, neon, avx2, avx512 };

struct CpuFeatures {
    bool neon = false;
    bool avx2_fma = false;  // AVX2 and FMA, which no processor of interest has apart
    bool avx512f = false;
    bool avx512_vnni = false;  // 8-bit integer dot products

    // The strongest set of kernels this processor runs.
    Isa best() const {
        if (avx512f) return Isa::avx512;
        if (avx2_fma) return Isa::avx2;
        if (neon) return Isa::neon;
        return Isa::portable;
    }
};

inline CpuFeatures detect_cpu_features() {
    CpuFeatures features;
#if defined(__aarch64__) || defined(_M_ARM64)
    features.neon = true;  // part of the base architecture
#elif (defined(__x86_64__) || defined(__i386__)) && (defined(__GNUC__) || defined(__clang__))
    // The builtins also ask whether the operating system saves the wide registers.
    __builtin_cpu_init();
    features.avx2_fma = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    features.avx512f = __builtin_cpu_supports("avx512f");
    features.avx512_vnni = features.avx512f && __builtin_cpu_supports("avx512vnni");
#endif
    return features;
}

inline const char* isa_name(Isa isa) {
    switch (isa) {
        case Isa::avx512:
            return "avx512";
        case Isa::avx2:
            return "avx2";
        case Isa::neon:
            return "neon";
        case Isa::portable:
            break;
    }
    return "portable";
}

}  // namespace tracenet
