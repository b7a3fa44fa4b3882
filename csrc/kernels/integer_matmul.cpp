// Picks integer_matmul() for an instruction set. Called through integer_matmul.h.
#include "kernels/integer_matmul.h"

namespace torchquant::kernels {

namespace reference {
void integer_matmul(const MatmulArgs& args, IndexRange panels);
}
namespace avx2 {
void integer_matmul(const MatmulArgs& args, IndexRange panels);
}
namespace avx512_vnni {
void integer_matmul(const MatmulArgs& args, IndexRange panels);
}

IntegerMatmul integer_matmul(Isa isa) {
  switch (isa) {
    case Isa::kReference:
      return reference::integer_matmul;
#if defined(__x86_64__)
    case Isa::kAvx512Vnni:
      return avx512_vnni::integer_matmul;
    default:  // the others have AVX2
      return avx2::integer_matmul;
#else
    default:
      return reference::integer_matmul;
#endif
  }
}

}  // namespace torchquant::kernels
