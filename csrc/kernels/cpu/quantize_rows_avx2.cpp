// quantize_row() compiled for AVX2. Called through kernels/quantize_rows.h.
#include <cstdint>

#include "numerics/affine.h"
#include "numerics/float16.h"
#include "numerics/macros.h"
#include "numerics/qparams.h"

namespace torchquant::kernels::avx2 {
namespace {

#include "kernels/cpu/quantize_rows_loops.h"

}  // namespace

float quantize_row(const float* x, int64_t n, uint8_t* codes);
float quantize_row(const float* x, int64_t n, uint8_t* codes) { return quantize_row_codes(x, n, codes); }

}  // namespace torchquant::kernels::avx2
