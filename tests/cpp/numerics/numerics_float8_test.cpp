// The 8-bit floating-point formats: every code against the format's definition, and rounding at every boundary between
// two of them.
#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "numerics/dynamic.h"
#include "numerics/float8.h"

namespace torchquant::numerics {
namespace {

constexpr float kInf = std::numeric_limits<float>::infinity();
constexpr float kNan = std::numeric_limits<float>::quiet_NaN();

template <typename Format>
class Float8Test : public ::testing::Test {};
using Formats = ::testing::Types<Float8E4M3, Float8E5M2>;
TYPED_TEST_SUITE(Float8Test, Formats);

// The value of a code up to `beyond`, the one after the largest, as the formats define it.
template <typename Format>
double defined_value(int code) {
  const int exponent = (code & 0x7f) >> Format::kMantissaBits;
  const double fraction = std::ldexp(code & ((1 << Format::kMantissaBits) - 1), -Format::kMantissaBits);
  const double sign = code & 0x80 ? -1.0 : 1.0;
  if (exponent == 0) return sign * std::ldexp(fraction, 1 - Format::kBias);
  return sign * std::ldexp(1.0 + fraction, exponent - Format::kBias);
}

TYPED_TEST(Float8Test, EveryCodeDecodesExactly) {
  for (int code = 0; code < 256; ++code) {
    const float value = float8_value<TypeParam>(static_cast<uint8_t>(code));
    if ((code & 0x7f) <= TypeParam::kLargestCode) {
      ASSERT_EQ(value, defined_value<TypeParam>(code)) << code;
    } else if (TypeParam::kBias == 15 && (code & 0x7f) == 0x7c) {
      ASSERT_EQ(value, code & 0x80 ? -kInf : kInf) << code;
    } else {
      ASSERT_TRUE(std::isnan(value)) << code;
      continue;
    }
    ASSERT_EQ(std::signbit(value), (code & 0x80) != 0) << code;
  }
  EXPECT_EQ(float8_value<TypeParam>(TypeParam::kLargestCode), TypeParam::kLargest);
}

TYPED_TEST(Float8Test, EveryFiniteCodeSurvivesARoundTrip) {
  for (int code = 0; code < 256; ++code) {
    if ((code & 0x7f) > TypeParam::kLargestCode) continue;
    ASSERT_EQ(float8_code<TypeParam>(float8_value<TypeParam>(static_cast<uint8_t>(code))), code);
  }
}

// Between each value and the next: the midpoint goes to the one with the even last bit, its fp32 neighbours to the
// nearer one.
TYPED_TEST(Float8Test, RoundsToNearestEvenAtEveryBoundary) {
  for (int code = 0; code < TypeParam::kLargestCode; ++code) {
    const auto middle = static_cast<float>((defined_value<TypeParam>(code) + defined_value<TypeParam>(code + 1)) / 2);
    const int even = code % 2 == 0 ? code : code + 1;
    ASSERT_EQ(float8_code<TypeParam>(middle), even) << code;
    ASSERT_EQ(float8_code<TypeParam>(std::nextafter(middle, 0.0f)), code) << code;
    ASSERT_EQ(float8_code<TypeParam>(std::nextafter(middle, kInf)), code + 1) << code;
    ASSERT_EQ(float8_code<TypeParam>(-middle), even | 0x80) << code;
  }
}

TYPED_TEST(Float8Test, SaturatesAndKeepsSigns) {
  for (const float x : {TypeParam::kLargest, std::nextafter(TypeParam::kLargest, kInf), 1e9f,
                        std::numeric_limits<float>::max(), kInf}) {
    EXPECT_EQ(float8_code<TypeParam>(x), TypeParam::kLargestCode) << x;
    EXPECT_EQ(float8_code<TypeParam>(-x), TypeParam::kLargestCode | 0x80) << x;
  }
  EXPECT_EQ(float8_code<TypeParam>(0.0f), 0);
  EXPECT_EQ(float8_code<TypeParam>(-0.0f), 0x80);
  EXPECT_EQ(float8_code<TypeParam>(std::numeric_limits<float>::denorm_min()), 0);
}

TYPED_TEST(Float8Test, EveryNaNBecomesOneCode) {
  for (const uint32_t bits : {0x7fc00000u, 0xffc00000u, 0x7f800001u, 0xffffffffu}) {
    EXPECT_EQ(float8_code<TypeParam>(bits_to_float(bits)), kFloat8Nan);
  }
  EXPECT_TRUE(std::isnan(fake_quantize_float8<TypeParam>(kNan, 0.5f, 2.0f)));
}

// The last value inside is the largest float whose code before saturation is none beyond the largest.
TYPED_TEST(Float8Test, StraightThroughMaskFollowsTheCodeBeforeSaturation) {
  const float last = TypeParam::kLastInside, beyond = std::nextafter(last, kInf);
  EXPECT_LE(unclamped_float8_code<TypeParam>(last), TypeParam::kLargestCode);
  EXPECT_GT(unclamped_float8_code<TypeParam>(beyond), TypeParam::kLargestCode);
  EXPECT_TRUE(float8_ste_mask<TypeParam>(-last, 1.0f));
  EXPECT_FALSE(float8_ste_mask<TypeParam>(beyond, 1.0f));
  EXPECT_FALSE(float8_ste_mask<TypeParam>(kNan, 1.0f));
}

TYPED_TEST(Float8Test, ScaleIsTheLargestMagnitudeOverTheLargestValue) {
  EXPECT_EQ(float8_scale<TypeParam>(finite_magnitude_bits(-3.0f)), 3.0f / TypeParam::kLargest);
  EXPECT_EQ(float8_scale<TypeParam>(0), 1.0f);
  EXPECT_EQ(float8_scale<TypeParam>(finite_magnitude_bits(1e-35f)), 1.0f);
}

}  // namespace
}  // namespace torchquant::numerics
