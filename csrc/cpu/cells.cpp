// Which CellKernels this processor runs.
#include "cpu/cells.hpp"

#include "tracenet/conv.hpp"
#include "tracenet/cpu_features.hpp"

namespace tracenet {

const CellKernels& cell_kernels() {
#if defined(__x86_64__) || defined(_M_X64)
    switch (active_isa()) {
        case Isa::avx512:
            return *cells_avx512();
        case Isa::avx2:
            return *cells_avx2();
        case Isa::neon:
        case Isa::portable:
            break;
    }
#endif
    return *cells_portable();
}

}  // namespace tracenet
