// The table of integer kernels for AVX2. Reached through kernels/quantized_kernels.h.
#include "kernels/cpu/quantized_reference.h"

namespace torchquant::kernels::avx2 {
namespace {

consteval QuantizedKernels make_table() {
  QuantizedKernels table = reference::make_quantized_table("avx2");
  return table;
}

}  // namespace

extern const QuantizedKernels quantized_table;
constinit const QuantizedKernels quantized_table = make_table();

}  // namespace torchquant::kernels::avx2
