// choose_qparams: known results, extremes, and properties over random ranges.
#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "numerics/qparams.h"
#include "support/rng.h"

namespace torchquant::numerics {
namespace {

constexpr QRange kInt8 = {-128, 127};
constexpr QRange kSymmetricInt8 = {-127, 127};
constexpr QRange kUInt8 = {0, 255};
constexpr QRange kUInt4 = {0, 15};
constexpr QRange kInt4 = {-8, 7};
constexpr QRange kUInt2 = {0, 3};

TEST(AffineQParams, KnownRanges) {
  const ScaleZeroPoint a = choose_qparams(-1.0f, 1.55f, false, kUInt8);
  EXPECT_EQ(a.scale, (1.55f + 1.0f) / 255.0f);
  EXPECT_EQ(a.zero_point, 100.0f);
  const ScaleZeroPoint b = choose_qparams(-1.5f, 0.0f, false, kUInt4);
  EXPECT_EQ(b.scale, 0.1f);
  EXPECT_EQ(b.zero_point, 15.0f);
  const ScaleZeroPoint c = choose_qparams(-64.0f, 63.5f, false, kInt8);
  EXPECT_EQ(c.scale, 0.5f);
  EXPECT_EQ(c.zero_point, 0.0f);
}

// Padding, ReLU and masked values need an exact zero, so a range on one side of it is stretched to it.
TEST(AffineQParams, RangeAlwaysContainsZero) {
  const ScaleZeroPoint positive = choose_qparams(2.0f, 5.1f, false, kUInt8);
  EXPECT_EQ(positive.scale, 5.1f / 255.0f);
  EXPECT_EQ(positive.zero_point, 0.0f);
  const ScaleZeroPoint negative = choose_qparams(-5.1f, -2.0f, false, kUInt8);
  EXPECT_EQ(negative.scale, 5.1f / 255.0f);
  EXPECT_EQ(negative.zero_point, 255.0f);
}

TEST(SymmetricQParams, ScaleIsAbsMaxOverTheLargestCode) {
  EXPECT_EQ(choose_qparams(-12.7f, 3.0f, true, kSymmetricInt8).scale, 12.7f / 127.0f);
  EXPECT_EQ(choose_qparams(-3.0f, 12.7f, true, kSymmetricInt8).scale, 12.7f / 127.0f);
  EXPECT_EQ(choose_qparams(-3.5f, 1.0f, true, kInt4).scale, 0.5f);
  EXPECT_EQ(choose_qparams(-12.7f, 3.0f, true, kUInt8).scale, 12.7f / 127.0f);
}

TEST(SymmetricQParams, ZeroPointIsTheMiddleCode) {
  EXPECT_EQ(symmetric_zero_point(kSymmetricInt8), 0.0f);
  EXPECT_EQ(symmetric_zero_point(kInt8), 0.0f);
  EXPECT_EQ(symmetric_zero_point(kInt4), 0.0f);
  EXPECT_EQ(symmetric_zero_point(kUInt8), 128.0f);
  EXPECT_EQ(symmetric_zero_point(kUInt4), 8.0f);
  EXPECT_EQ(symmetric_zero_point(kUInt2), 2.0f);
}

TEST(QParams, TinyScaleBecomesOne) {
  for (bool symmetric : {false, true}) {
    EXPECT_EQ(choose_qparams(0.0f, 0.0f, symmetric, kUInt8).scale, 1.0f);
    EXPECT_EQ(choose_qparams(-1e-38f, 1e-38f, symmetric, kUInt8).scale, 1.0f);
    EXPECT_EQ(choose_qparams(0.0f, 1e-45f, symmetric, kSymmetricInt8).scale, 1.0f);
  }
  EXPECT_EQ(choose_qparams(0.0f, 0.0f, false, kInt8).zero_point, -128.0f);
  EXPECT_EQ(usable_scale(kMinScale), kMinScale);
  EXPECT_EQ(usable_scale(std::nextafter(kMinScale, 0.0f)), 1.0f);
}

// min = +inf, max = -inf is an observer that saw nothing.
TEST(QParams, EmptyRangeIsTheRangeOfZero) {
  const float inf = std::numeric_limits<float>::infinity();
  for (bool symmetric : {false, true}) {
    const ScaleZeroPoint empty = choose_qparams(inf, -inf, symmetric, kUInt8);
    const ScaleZeroPoint zero = choose_qparams(0.0f, 0.0f, symmetric, kUInt8);
    EXPECT_EQ(empty.scale, zero.scale);
    EXPECT_EQ(empty.zero_point, zero.zero_point);
  }
}

// max - min overflows here although the scale does not.
TEST(QParams, WidestRangesGiveFiniteScales) {
  for (QRange range : {kUInt8, kSymmetricInt8, kUInt4, kUInt2}) {
    for (bool symmetric : {false, true}) {
      const ScaleZeroPoint p = choose_qparams(-kMaxFloat, kMaxFloat, symmetric, range);
      EXPECT_TRUE(valid_scale(p.scale)) << p.scale;
      EXPECT_GE(p.zero_point, range.quant_min);
      EXPECT_LE(p.zero_point, range.quant_max);
    }
  }
  EXPECT_NEAR(choose_qparams(-kMaxFloat, kMaxFloat, false, kUInt8).zero_point, 127.5f, 0.5f);
}

// Over ranges of every magnitude: the zero point is a code, zero is represented exactly and no observed value moves by
// more than half a step (and the rounding of x * (1/scale)).
TEST(QParams, EveryValueOfTheRangeIsWithinHalfAStep) {
  test::Random random(2024);
  for (int i = 0; i < 20000; ++i) {
    const float magnitude = std::ldexp(1.0f, static_cast<int>(random.integer(-80, 80)));
    const float min_val = random.uniform(-1.0f, 0.5f) * magnitude;
    const float max_val = min_val + random.uniform(0.0f, 2.0f) * magnitude;
    const QRange range = i % 3 == 0 ? kUInt8 : i % 3 == 1 ? kSymmetricInt8 : kUInt4;
    const bool symmetric = i % 2 == 0;
    const ScaleZeroPoint chosen = choose_qparams(min_val, max_val, symmetric, range);
    SCOPED_TRACE(::testing::Message() << "range " << min_val << " .. " << max_val << ", symmetric " << symmetric);
    ASSERT_TRUE(valid_scale(chosen.scale));
    ASSERT_EQ(chosen.zero_point, effective_zero_point(chosen.zero_point, range));
    const QParams p = make_qparams(chosen.scale, chosen.zero_point, range);
    ASSERT_EQ(fake_quantize_value(0.0f, p, range), 0.0f);
    for (float x : {min_val, max_val, random.uniform(min_val, max_val)}) {
      ASSERT_LE(std::fabs(fake_quantize_value(x, p, range) - x), chosen.scale * 0.5001f) << "x = " << x;
    }
  }
}

TEST(PowerOfTwoScale, IsTheSmallestThatIsNotBelow) {
  for (int exponent = -100; exponent <= 127; ++exponent) {
    const float power = std::ldexp(1.0f, exponent);
    EXPECT_EQ(power_of_two_scale(power), power);
    EXPECT_EQ(power_of_two_scale(std::nextafter(power, 0.0f)), power);
    if (exponent < 127) {
      EXPECT_EQ(power_of_two_scale(std::nextafter(power, kMaxFloat)), 2.0f * power);
    }
  }
  EXPECT_EQ(power_of_two_scale(kMaxFloat), std::ldexp(1.0f, 127));  // the largest there is
  EXPECT_TRUE(std::isnan(power_of_two_scale(std::numeric_limits<float>::quiet_NaN())));
  EXPECT_EQ(power_of_two_scale(-1.0f), -1.0f);
}

TEST(PowerOfTwoQParams, KeepTheRangeUpToHalfAStep) {
  test::Random random(77);
  for (int i = 0; i < 20000; ++i) {
    const QRange range = i % 3 == 0 ? kUInt8 : i % 3 == 1 ? kSymmetricInt8 : kUInt4;
    const bool symmetric = i % 2 == 0;
    const float min_val = random.uniform(-2.0f, 1.0f);
    const ScaleZeroPoint plain = choose_qparams(min_val, min_val + random.uniform(0.001f, 3.0f), symmetric, range);
    const ScaleZeroPoint rounded = power_of_two_qparams(plain, symmetric, range);
    ASSERT_EQ(rounded.zero_point, effective_zero_point(rounded.zero_point, range));
    if (symmetric) {
      ASSERT_EQ(rounded.zero_point, plain.zero_point);
    }
    const float slack = 0.5001f * rounded.scale;
    ASSERT_LE((range.quant_min - rounded.zero_point) * rounded.scale,
              (range.quant_min - plain.zero_point) * plain.scale + slack);
    ASSERT_GE((range.quant_max - rounded.zero_point) * rounded.scale,
              (range.quant_max - plain.zero_point) * plain.scale - slack);
  }
}

}  // namespace
}  // namespace torchquant::numerics
