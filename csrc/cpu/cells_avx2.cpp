// CellKernels for AVX2.
#define TRACENET_LANES 8
#include "cpu/cells_body.hpp"

namespace tracenet {

const CellKernels* cells_avx2() { return &kCellKernels; }

}  // namespace tracenet
