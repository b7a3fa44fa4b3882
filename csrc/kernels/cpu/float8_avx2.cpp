// The fp8 kernels compiled for AVX2. Called through kernels/float8.h.
#include <cstdint>

#include "kernels/float8.h"
#include "numerics/dynamic.h"
#include "numerics/float8.h"

namespace torchquant::kernels::avx2 {
namespace {

#include "kernels/cpu/float8_loops.h"

}  // namespace

extern const Float8Kernels kFloat8Kernels;
const Float8Kernels kFloat8Kernels{scale_of, quantize, dequantize, fake_quantize};

}  // namespace torchquant::kernels::avx2
