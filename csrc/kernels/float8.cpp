// Picks the fp8 kernels of an instruction set. Called through float8.h.
#include "kernels/float8.h"

namespace torchquant::kernels {

namespace reference {
extern const Float8Kernels kFloat8Kernels;
}
namespace avx2 {
extern const Float8Kernels kFloat8Kernels;
}
namespace avx512 {
extern const Float8Kernels kFloat8Kernels;
}

const Float8Kernels& float8_kernels(Isa isa) {
  switch (isa) {
#if defined(__x86_64__)
    case Isa::kAvx2:
    case Isa::kAvxVnni:
      return avx2::kFloat8Kernels;
    case Isa::kAvx512:
    case Isa::kAvx512Vnni:
      return avx512::kFloat8Kernels;
#endif
    default:
      return reference::kFloat8Kernels;
  }
}

const Float8Kernels& float8_kernels() { return float8_kernels(selected_isa()); }

}  // namespace torchquant::kernels
