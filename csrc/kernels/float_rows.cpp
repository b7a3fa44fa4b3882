// Picks the float kernels between integer layers for an instruction set. Called through float_rows.h.
#include "kernels/float_rows.h"

namespace torchquant::kernels {

namespace reference {
extern const FloatRowKernels kFloatRowKernels;
}
namespace avx2 {
extern const FloatRowKernels kFloatRowKernels;
}
namespace avx512 {
extern const FloatRowKernels kFloatRowKernels;
}

const FloatRowKernels& float_row_kernels(Isa isa) {
  switch (isa) {
#if defined(__x86_64__)
    case Isa::kAvx2:
    case Isa::kAvxVnni:
      return avx2::kFloatRowKernels;
    case Isa::kAvx512:
    case Isa::kAvx512Vnni:
      return avx512::kFloatRowKernels;
#endif
    default:
      return reference::kFloatRowKernels;
  }
}

}  // namespace torchquant::kernels
