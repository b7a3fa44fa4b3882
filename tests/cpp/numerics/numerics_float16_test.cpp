// fp16 and bfloat16 conversions: every one of the 65,536 values, and rounding at every boundary between two of them.
#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "numerics/float16.h"

namespace torchquant::numerics {
namespace {

constexpr float kInf = std::numeric_limits<float>::infinity();

// The value of a format with `mantissa_bits`, from its definition.
template <typename T>
struct Format;
template <>
struct Format<Float16> {
  static constexpr int mantissa_bits = 10, bias = 15;
};
template <>
struct Format<BFloat16> {
  static constexpr int mantissa_bits = 7, bias = 127;
};

template <typename T>
bool is_nan(uint16_t bits) {
  const int exponents = 0x7fff >> Format<T>::mantissa_bits << Format<T>::mantissa_bits;
  return (bits & 0x7fff) > exponents;
}

template <typename T>
double defined_value(uint16_t bits) {
  const int mantissa_bits = Format<T>::mantissa_bits;
  const int exponent = (bits & 0x7fff) >> mantissa_bits;
  const double fraction = std::ldexp(bits & ((1 << mantissa_bits) - 1), -mantissa_bits);
  const double sign = bits & 0x8000 ? -1.0 : 1.0;
  if (exponent == 0x7fff >> mantissa_bits) return sign * std::numeric_limits<double>::infinity();
  if (exponent == 0) return sign * std::ldexp(fraction, 1 - Format<T>::bias);
  return sign * std::ldexp(1.0 + fraction, exponent - Format<T>::bias);
}

template <typename T>
class Float16Test : public ::testing::Test {};
using Types = ::testing::Types<Float16, BFloat16>;
TYPED_TEST_SUITE(Float16Test, Types);

TYPED_TEST(Float16Test, EveryValueWidensExactly) {
  for (int bits = 0; bits < 65536; ++bits) {
    const float value = to_float(TypeParam{static_cast<uint16_t>(bits)});
    if (is_nan<TypeParam>(bits)) {
      ASSERT_TRUE(std::isnan(value)) << std::hex << bits;
    } else {
      ASSERT_EQ(value, defined_value<TypeParam>(bits)) << std::hex << bits;
      ASSERT_EQ(std::signbit(value), (bits & 0x8000) != 0) << std::hex << bits;
    }
  }
}

TYPED_TEST(Float16Test, EveryValueSurvivesARoundTrip) {
  const int quiet = 1 << (Format<TypeParam>::mantissa_bits - 1);
  for (int bits = 0; bits < 65536; ++bits) {
    const int expected = is_nan<TypeParam>(bits) ? bits | quiet : bits;
    ASSERT_EQ(from_float<TypeParam>(to_float(TypeParam{static_cast<uint16_t>(bits)})).bits, expected)
        << std::hex << bits;
  }
}

// Between each value and the next (the last of which is infinity, taken as the next power of two): the midpoint goes to
// the one with the even last bit, its fp32 neighbours to the nearer one.
TYPED_TEST(Float16Test, RoundsToNearestEvenAtEveryBoundary) {
  const int infinity = 0x7fff >> Format<TypeParam>::mantissa_bits << Format<TypeParam>::mantissa_bits;
  const double beyond_last = std::ldexp(1.0, Format<TypeParam>::bias + 1);
  for (int bits = 0; bits < infinity; ++bits) {
    const double next = bits + 1 == infinity ? beyond_last : defined_value<TypeParam>(bits + 1);
    const float middle = static_cast<float>((defined_value<TypeParam>(bits) + next) / 2);
    const int even = bits % 2 == 0 ? bits : bits + 1;
    ASSERT_EQ(from_float<TypeParam>(middle).bits, even) << std::hex << bits;
    ASSERT_EQ(from_float<TypeParam>(std::nextafter(middle, 0.0f)).bits, bits) << std::hex << bits;
    ASSERT_EQ(from_float<TypeParam>(std::nextafter(middle, kInf)).bits, bits + 1) << std::hex << bits;
    ASSERT_EQ(from_float<TypeParam>(-middle).bits, even | 0x8000) << std::hex << bits;
  }
}

TYPED_TEST(Float16Test, OverflowsToInfinityAndKeepsSigns) {
  const int infinity = 0x7fff >> Format<TypeParam>::mantissa_bits << Format<TypeParam>::mantissa_bits;
  EXPECT_EQ(from_float<TypeParam>(std::numeric_limits<float>::max()).bits, infinity);
  EXPECT_EQ(from_float<TypeParam>(kInf).bits, infinity);
  EXPECT_EQ(from_float<TypeParam>(-kInf).bits, infinity | 0x8000);
  EXPECT_EQ(from_float<TypeParam>(-0.0f).bits, 0x8000);
}

TEST(Float16, UnderflowsBelowHalfTheSmallestSubnormal) {
  EXPECT_EQ(from_float<Float16>(0x1p-25f).bits, 0);
  EXPECT_EQ(from_float<Float16>(0x1.000002p-25f).bits, 1);
  EXPECT_EQ(from_float<Float16>(std::numeric_limits<float>::denorm_min()).bits, 0);
}

TEST(Float16, WideningKeepsThePayloadOfNaN) {
  EXPECT_EQ(float_to_bits(to_float(Float16{0xfc01})), 0xffc02000u);  // fp16 becomes quiet, as in VCVTPH2PS
  EXPECT_EQ(float_to_bits(to_float(Float16{0x7e01})), 0x7fc02000u);
  EXPECT_EQ(float_to_bits(to_float(BFloat16{0xff81})), 0xff810000u);  // bfloat16 is shifted
}

TEST(Float16, NaNKeepsSignAndUpperPayloadAndBecomesQuiet) {
  EXPECT_EQ(from_float<Float16>(bits_to_float(0xffc02000u)).bits, 0xfe01);
  EXPECT_EQ(from_float<Float16>(bits_to_float(0x7f800001u)).bits, 0x7e00);
  EXPECT_EQ(from_float<BFloat16>(bits_to_float(0xff810000u)).bits, 0xffc1);
  EXPECT_EQ(from_float<BFloat16>(bits_to_float(0x7fffffffu)).bits, 0x7fff);
}

}  // namespace
}  // namespace torchquant::numerics
