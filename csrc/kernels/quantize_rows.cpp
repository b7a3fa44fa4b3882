// Picks quantize_row() for an instruction set. Called through quantize_rows.h.
#include "kernels/quantize_rows.h"

namespace torchquant::kernels {

namespace reference {
float quantize_row(const float* x, int64_t n, uint8_t* codes);
}
namespace avx2 {
float quantize_row(const float* x, int64_t n, uint8_t* codes);
}
namespace avx512 {
float quantize_row(const float* x, int64_t n, uint8_t* codes);
}

QuantizeRow quantize_row(Isa isa) {
  switch (isa) {
#if defined(__x86_64__)
    case Isa::kAvx2:
    case Isa::kAvxVnni:
      return avx2::quantize_row;
    case Isa::kAvx512:
    case Isa::kAvx512Vnni:
      return avx512::quantize_row;
#endif
    default:
      return reference::quantize_row;
  }
}

}  // namespace torchquant::kernels
