// The tables of integer kernels for AVX-512 and AVX-512-VNNI. Reached through kernels/quantized_kernels.h.
#include "kernels/cpu/quantized_reference.h"

namespace torchquant::kernels::avx512 {
namespace {

consteval QuantizedKernels make_table(const char* name) {
  QuantizedKernels table = reference::make_quantized_table(name);
  return table;
}

}  // namespace

extern const QuantizedKernels quantized_table;
constinit const QuantizedKernels quantized_table = make_table("avx512");

}  // namespace torchquant::kernels::avx512

// Its own instruction serves only the engine of kernels/integer_conv.h.
namespace torchquant::kernels::avx512_vnni {

extern const QuantizedKernels quantized_table;
constinit const QuantizedKernels quantized_table = avx512::make_table("avx512_vnni");

}  // namespace torchquant::kernels::avx512_vnni
