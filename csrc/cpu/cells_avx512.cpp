// CellKernels for AVX-512.
#define TRACENET_LANES 16
#include "cpu/cells_body.hpp"

namespace tracenet {

const CellKernels* cells_avx512() { return &kCellKernels; }

}  // namespace tracenet
