// From an accumulator to an output code: each step's rounding, every tie and every saturation by name.
#include <gtest/gtest.h>

#include <cmath>
#include <cstdint>
#include <limits>

#include "numerics/requantize.h"

namespace torchquant::numerics {
namespace {

constexpr QRange kUint8{0.0f, 255.0f};
constexpr QRange kInt8{-128.0f, 127.0f};
constexpr float kInfinity = std::numeric_limits<float>::infinity();

TEST(ScaleAccumulator, RoundsOnceNotTwice) {
  // 16777215 * 0.1f lies so that a separate multiplication rounds up before the bias is added.
  const int32_t acc = 16777215;
  const float m = 0.1f;
  const double exact = static_cast<double>(acc) * static_cast<double>(m) - 1677721.5;
  EXPECT_EQ(scale_accumulator(acc, m, -1677721.5f), static_cast<float>(exact));
  const volatile float product = static_cast<float>(acc) * m;
  EXPECT_NE(product - 1677721.5f, static_cast<float>(exact)) << "the case does not tell one rounding from two";
}

TEST(ScaleAccumulator, TakesTheWholeInt32Range) {
  EXPECT_EQ(scale_accumulator(std::numeric_limits<int32_t>::max(), 1.0f, 0.0f), 2147483648.0f);
  EXPECT_EQ(scale_accumulator(std::numeric_limits<int32_t>::min(), 1.0f, 0.0f), -2147483648.0f);
}

TEST(ScaleAccumulator, LargeAccumulatorsRoundHalfToEven) {
  EXPECT_EQ(scale_accumulator(16777217, 1.0f, 0.0f), 16777216.0f);
  EXPECT_EQ(scale_accumulator(16777219, 1.0f, 0.0f), 16777220.0f);
}

TEST(AddResidual, IsAddedToTheScaledValue) {
  EXPECT_EQ(add_residual(1.25f, -3, 0.5f), -0.25f);
  EXPECT_EQ(add_residual(1.25f, 0, 1e30f), 1.25f);
}

TEST(OutputCode, TiesGoToEvenBeforeTheZeroPointIsAdded) {
  // With an odd zero point, adding before rounding would give 3 + 0.5 -> 4.
  EXPECT_EQ(output_code(0.5f, 3.0f, kUint8), 3.0f);
  EXPECT_EQ(output_code(1.5f, 3.0f, kUint8), 5.0f);
  EXPECT_EQ(output_code(2.5f, 3.0f, kUint8), 5.0f);
  EXPECT_EQ(output_code(-0.5f, 3.0f, kUint8), 3.0f);
  EXPECT_EQ(output_code(-1.5f, 3.0f, kUint8), 1.0f);
}

TEST(OutputCode, SaturatesAtBothEnds) {
  EXPECT_EQ(output_code(300.0f, 0.0f, kUint8), 255.0f);
  EXPECT_EQ(output_code(-1.0f, 0.0f, kUint8), 0.0f);
  EXPECT_EQ(output_code(127.5f, 0.0f, kInt8), 127.0f);
  EXPECT_EQ(output_code(-1e30f, 0.0f, kInt8), -128.0f);
  EXPECT_EQ(output_code(kInfinity, 5.0f, kUint8), 255.0f);
  EXPECT_EQ(output_code(-kInfinity, 5.0f, kUint8), 0.0f);
}

TEST(OutputCode, NanGivesTheZeroPoint) { EXPECT_EQ(output_code(std::nanf(""), 7.0f, kUint8), 7.0f); }

TEST(Activate, ClampsActOnTheScaledValue) {
  const ActivationSpec relu6{Activation::kClamp, {0.0f, 60.0f}, 0.1f, 10.0f};
  EXPECT_EQ(activate(-1.0f, relu6), 0.0f);
  EXPECT_EQ(activate(59.5f, relu6), 59.5f);
  EXPECT_EQ(activate(61.0f, relu6), 60.0f);
  const ActivationSpec relu{Activation::kClamp, {0.0f, kInfinity}, 0.1f, 10.0f};
  EXPECT_EQ(activate(1e30f, relu), 1e30f);
}

TEST(Activate, OthersActOnTheRealValue) {
  const ActivationSpec sigmoid{Activation::kSigmoid, {0.0f, 0.0f}, 0.5f, 2.0f};
  EXPECT_EQ(activate(4.0f, sigmoid), sigmoid_f32(2.0f) * 2.0f);
}

TEST(Activate, NoneChangesNothing) { EXPECT_EQ(activate(-3.75f, no_activation()), -3.75f); }

}  // namespace
}  // namespace torchquant::numerics
