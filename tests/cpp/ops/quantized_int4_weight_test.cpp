// 4-bit weights as tensors: round trips of convolution and linear shapes, and refusals.
#include <ATen/core/Tensor.h>
#include <ATen/ops/equal.h>
#include <ATen/ops/randint.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "ops/int4_weight.h"

namespace torchquant::ops {
namespace {

using testing::HasSubstr;

at::Tensor random_codes(at::IntArrayRef shape) {
  return at::randint(-8, 8, shape, at::TensorOptions().dtype(at::kChar));
}

TEST(Int4Weight, RoundTripsAlongTheFlattenedRest) {
  for (const auto& shape : std::vector<std::vector<int64_t>>{{5, 7}, {4, 8}, {6, 3, 3, 3}, {2, 1, 5}, {3}}) {
    const at::Tensor codes = random_codes(shape);
    const at::Tensor packed = pack_int4(codes, -8);
    const int64_t rest = codes.numel() / shape[0];
    EXPECT_EQ(packed.sizes(), (std::vector<int64_t>{shape[0], (rest + 1) / 2}));
    EXPECT_TRUE(at::equal(unpack_int4(packed, shape, -8), codes));
  }
}

TEST(Int4Weight, ReadsAnyStrides) {
  const at::Tensor codes = random_codes({6, 10}).t();
  EXPECT_TRUE(at::equal(unpack_int4(pack_int4(codes, -8), {10, 6}, -8), codes));
}

TEST(Int4Weight, NamesACodeThatDoesNotFit) {
  const at::Tensor codes = at::randint(-8, 8, {4, 4}, at::TensorOptions().dtype(at::kChar)).fill_(9);
  EXPECT_THAT([&] { pack_int4(codes, -8); },
              testing::ThrowsMessage<c10::Error>(HasSubstr("codes must lie in [-8, 7], got 9")));
}

TEST(Int4Weight, NamesAShapeThatDoesNotFit) {
  const at::Tensor packed = pack_int4(random_codes({4, 4}), -8);
  EXPECT_THAT(
      [&] {
        unpack_int4(packed, {4, 5}, -8);
      },
      testing::ThrowsMessage<c10::Error>(HasSubstr("packed must have shape [4, 3]")));
}

}  // namespace
}  // namespace torchquant::ops
