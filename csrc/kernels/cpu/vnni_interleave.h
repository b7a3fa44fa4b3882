// Packs a panel of codes that come with the call for the AVX512-VNNI tile kernel, and adds up rows of codes: on
// x86-64's own 16-byte vectors, since this is a small part of a product. Called by integer_matmul_vnni.cpp.
#pragma once

#if defined(__x86_64__)

#include <cstdint>

namespace torchquant::kernels::avx512_vnni {

// A panel's codes as they lie: `columns` (at most 32) of `depth`. `flip` is 0x80 for uint8 codes, which become int8
// ones that are lower by 128, and 0 for int8.
struct PanelSource {
  const uint8_t* codes;
  int64_t row_stride;     // from one step of the depth to the next
  int64_t column_stride;  // either is 1, unless there is one column
  int64_t depth;
  int64_t columns;
  uint8_t flip;
};

// Writes [ceil(depth / 4)][32 columns][4 of the depth], 0 where there is no code.
void interleave_panel(const PanelSource& source, int8_t* panel);

// Sum of n codes as uint8 after xor with `flip`.
int32_t sum_codes(const uint8_t* codes, int64_t n, uint8_t flip);

}  // namespace torchquant::kernels::avx512_vnni

#endif  // defined(__x86_64__)
