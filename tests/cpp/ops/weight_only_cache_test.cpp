// Which zero points the packed CUDA form of a weight-only layer takes: those that its 16-bit floats hold exactly.
#include "ops/weight_only_cache.h"

#include <ATen/ops/tensor.h>
#include <gtest/gtest.h>

#include <cmath>
#include <string>
#include <vector>

namespace torchquant::ops {
namespace {

// The error's text; empty if the zero points pass.
std::string refusal(int32_t bits, int32_t quant_min, const std::vector<float>& zero_points) {
  const kernels::WeightOnlyShape shape{1, 64, 64, bits, quant_min, true};
  try {
    check_packable_zero_points("op", shape, at::tensor(zero_points));
  } catch (const c10::Error& error) {
    return error.what_without_backtrace();
  }
  return "";
}

TEST(PackableZeroPoints, AreTheCodes) {
  EXPECT_EQ(refusal(4, -8, {-8.0f, 0.0f, 7.0f}), "");
  EXPECT_EQ(refusal(4, 0, {0.0f, 15.0f}), "");
  EXPECT_EQ(refusal(8, -127, {-128.0f, 127.0f}), "");
}

TEST(PackableZeroPoints, AreWholeAndInsideTheRange) {
  EXPECT_EQ(
      refusal(4, -8, {0.5f, 1.0f}),
      "op: on CUDA weight_zero_point must hold whole numbers in [-8, 7] for 4-bit weights, got values from 0.5 to 1");
  EXPECT_NE(refusal(4, 0, {-1.0f, 3.0f}), "");
  EXPECT_NE(refusal(4, -8, {0.0f, 8.0f}), "");
  EXPECT_NE(refusal(8, -127, {0.0f, 128.0f}), "");
  EXPECT_NE(refusal(8, -127, {0.0f, NAN}), "");
}

}  // namespace
}  // namespace torchquant::ops
