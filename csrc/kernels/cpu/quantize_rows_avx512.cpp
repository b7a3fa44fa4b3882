// quantize_row() compiled for AVX-512. Called through kernels/quantize_rows.h.
#include <cstdint>

#include "kernels/fake_quantize.h"
#include "kernels/quantize_rows.h"
#include "numerics/dynamic.h"
#include "numerics/macros.h"

namespace torchquant::kernels::avx512 {

extern const FakeQuantizeKernels fake_quantize_table;

namespace {

#include "kernels/cpu/quantize_rows_loops.h"

}  // namespace

float quantize_row(const float* x, int64_t n, uint8_t* codes);
float quantize_row(const float* x, int64_t n, uint8_t* codes) {
  return quantize_row_codes(fake_quantize_table, x, n, codes);
}

}  // namespace torchquant::kernels::avx512
