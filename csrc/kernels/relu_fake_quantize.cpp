// Picks the kernels of a fake-quantize behind a ReLU for an instruction set. Called through relu_fake_quantize.h.
#include "kernels/relu_fake_quantize.h"

namespace torchquant::kernels {

namespace reference {
extern const ReluFakeQuantizeKernels kReluFakeQuantizeKernels;
}
namespace avx2 {
extern const ReluFakeQuantizeKernels kReluFakeQuantizeKernels;
}
namespace avx512 {
extern const ReluFakeQuantizeKernels kReluFakeQuantizeKernels;
}

const ReluFakeQuantizeKernels& relu_fake_quantize_kernels(Isa isa) {
  switch (isa) {
#if defined(__x86_64__)
    case Isa::kAvx2:
      return avx2::kReluFakeQuantizeKernels;
    case Isa::kAvx512:
    case Isa::kAvx512Vnni:
      return avx512::kReluFakeQuantizeKernels;
#endif
    default:
      return reference::kReluFakeQuantizeKernels;
  }
}

}  // namespace torchquant::kernels
