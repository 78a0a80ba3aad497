// CellKernels with 4 lanes, which the base of every architecture has (SSE2, NEON).
#define TRACENET_LANES 4
#include "cpu/cells_body.hpp"

namespace tracenet {

const CellKernels* cells_portable() { return &kCellKernels; }

}  // namespace tracenet
