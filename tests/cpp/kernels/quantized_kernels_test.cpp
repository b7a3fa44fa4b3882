// The table of integer kernels: what is the same for all of its entries. (The results are tested against NumPy in
// tests/python/test_quantized_ops.py, convolutions and linear layers in integer_conv_test.cpp.)
#include "kernels/quantized_kernels.h"

#include <gtest/gtest.h>

#include <vector>

namespace torchquant::kernels {
namespace {

TEST(QuantizedLookup, FlipsTheSignBitOfSignedCodes) {
  std::vector<uint8_t> table(256);
  for (int i = 0; i < 256; ++i) table[i] = static_cast<uint8_t>(255 - i);
  const int8_t x[] = {-128, -1, 0, 127};
  uint8_t out[4];
  quantized_kernels().lookup({x, ElementType::kInt8, table.data(), 1, out}, {0, 4});
  EXPECT_EQ(std::vector<uint8_t>(out, out + 4), (std::vector<uint8_t>{255, 128, 127, 0}));
}

TEST(QuantizedKernels, NameTheirInstructionSet) {
  for (const Isa isa : available_isas()) EXPECT_STREQ(quantized_kernels(isa).name, isa_name(isa));
  EXPECT_EQ(&quantized_kernels(), &quantized_kernels(selected_isa()));
}

}  // namespace
}  // namespace torchquant::kernels
