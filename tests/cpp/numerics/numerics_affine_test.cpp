// The affine contract, value by value: every tie, saturation and special value by name, and every code exhaustively.
#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "numerics/affine.h"

namespace torchquant::numerics {
namespace {

constexpr float kInf = std::numeric_limits<float>::infinity();
constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();
constexpr QRange kInt8 = {-128, 127};
constexpr QRange kSymmetricInt8 = {-127, 127};
constexpr QRange kUInt8 = {0, 255};

TEST(RoundHalfEven, TiesGoToTheEvenNeighbour) {
  EXPECT_EQ(round_half_even(0.5f), 0.0f);
  EXPECT_EQ(round_half_even(1.5f), 2.0f);
  EXPECT_EQ(round_half_even(2.5f), 2.0f);
  EXPECT_EQ(round_half_even(3.5f), 4.0f);
  EXPECT_EQ(round_half_even(-0.5f), 0.0f);
  EXPECT_EQ(round_half_even(-1.5f), -2.0f);
  EXPECT_EQ(round_half_even(-2.5f), -2.0f);
  EXPECT_EQ(round_half_even(254.5f), 254.0f);
  EXPECT_EQ(round_half_even(255.5f), 256.0f);
  EXPECT_EQ(round_half_even(8388606.5f), 8388606.0f);  // the largest ties that fp32 holds
  EXPECT_EQ(round_half_even(8388607.5f), 8388608.0f);
}

// Adding 0.5 and truncating would send the first to 1.
TEST(RoundHalfEven, NeighboursOfATieGoToTheNearest) {
  EXPECT_EQ(round_half_even(std::nextafter(0.5f, 0.0f)), 0.0f);
  EXPECT_EQ(round_half_even(std::nextafter(0.5f, 1.0f)), 1.0f);
  EXPECT_EQ(round_half_even(std::nextafter(2.5f, 3.0f)), 3.0f);
  EXPECT_EQ(round_half_even(std::nextafter(3.5f, 3.0f)), 3.0f);
}

TEST(RoundHalfEven, KeepsWholeNumbersAndSpecialValues) {
  EXPECT_EQ(round_half_even(8388609.0f), 8388609.0f);
  EXPECT_EQ(round_half_even(-3e38f), -3e38f);
  EXPECT_EQ(round_half_even(kInf), kInf);
  EXPECT_TRUE(std::isnan(round_half_even(kNaN)));
  EXPECT_TRUE(std::signbit(round_half_even(-0.25f)));
}

// Rounding x/s + z instead would give 2 for the first and 2 for the second.
TEST(Quantize, ZeroPointIsAddedAfterRounding) {
  EXPECT_EQ(quantize_value(0.5f, make_qparams(1.0f, 1.0f, kUInt8), kUInt8), 1.0f);
  EXPECT_EQ(quantize_value(1.5f, make_qparams(1.0f, 1.0f, kUInt8), kUInt8), 3.0f);
  EXPECT_EQ(quantize_value(-2.5f, make_qparams(1.0f, 101.0f, kUInt8), kUInt8), 99.0f);
}

// x / scale and x * (1 / scale) differ in the last bit for some of these near-ties, and then give different codes.
TEST(Quantize, MultipliesByTheReciprocal) {
  int differing = 0;
  for (int k = 1; k < 127; ++k) {
    const float scale = 0.7f;
    const float x = (static_cast<float>(k) + 0.5f) * scale;
    const float code = quantize_value(x, make_qparams(scale, 0.0f, kInt8), kInt8);
    EXPECT_EQ(code, std::nearbyint(x * (1.0f / scale))) << "x = " << x;
    differing += code != std::nearbyint(x / scale);
  }
  EXPECT_GT(differing, 0) << "no input tells a product from a quotient";
}

TEST(Quantize, SaturatesAtBothEnds) {
  const QParams p = make_qparams(0.5f, 3.0f, kInt8);
  EXPECT_EQ(quantize_value(62.0f, p, kInt8), 127.0f);
  EXPECT_EQ(quantize_value(62.5f, p, kInt8), 127.0f);
  EXPECT_EQ(quantize_value(-65.5f, p, kInt8), -128.0f);
  EXPECT_EQ(quantize_value(-66.0f, p, kInt8), -128.0f);
  EXPECT_EQ(quantize_value(3e38f, p, kInt8), 127.0f);
  EXPECT_EQ(quantize_value(-3e38f, p, kInt8), -128.0f);
  EXPECT_EQ(quantize_value(kInf, p, kInt8), 127.0f);
  EXPECT_EQ(quantize_value(-kInf, p, kInt8), -128.0f);
}

TEST(Quantize, NaNGivesTheZeroPoint) {
  EXPECT_EQ(quantize_value(kNaN, make_qparams(0.5f, 77.0f, kUInt8), kUInt8), 77.0f);
}

TEST(Quantize, SubnormalInputsAreNotFlushed) {
  const float tiny = std::numeric_limits<float>::denorm_min();
  const float scale = 0x1p-126f;
  EXPECT_EQ(quantize_value(0x1p-126f, make_qparams(scale, 0.0f, kInt8), kInt8), 1.0f);
  EXPECT_EQ(quantize_value(0x1.8p-127f, make_qparams(scale, 0.0f, kInt8), kInt8), 1.0f);
  EXPECT_EQ(quantize_value(tiny, make_qparams(scale, 0.0f, kInt8), kInt8), 0.0f);
}

TEST(FakeQuantize, NaNPassesThrough) {
  EXPECT_TRUE(std::isnan(fake_quantize_value(kNaN, make_qparams(0.5f, 77.0f, kUInt8), kUInt8)));
}

TEST(FakeQuantize, EqualsDequantizeOfQuantize) {
  const QParams p = make_qparams(0.37f, 101.0f, kUInt8);
  for (int i = -4000; i <= 4000; ++i) {
    const float x = static_cast<float>(i) * 0.03125f;
    EXPECT_EQ(fake_quantize_value(x, p, kUInt8), dequantize_value(quantize_value(x, p, kUInt8), p)) << "x = " << x;
  }
}

// Fake-quantizing twice changes nothing: the result is a point of the grid.
TEST(FakeQuantize, IsIdempotent) {
  const QParams p = make_qparams(0.1f, -3.0f, kInt8);
  for (int i = -3000; i <= 3000; ++i) {
    const float once = fake_quantize_value(static_cast<float>(i) * 0.0078125f, p, kInt8);
    EXPECT_EQ(fake_quantize_value(once, p, kInt8), once) << "i = " << i;
  }
}

// Every code of every 2 to 8 bit range, signed and unsigned, with every zero point.
TEST(RoundTrip, EveryCodeAndZeroPoint) {
  for (float scale : {1.0f, 0.1f, 0.0123f, 3.7e-5f, 1234.5f, 0x1p-100f, 1e30f}) {
    for (int bits = 2; bits <= 8; ++bits) {
      for (float quant_min : {0.0f, -static_cast<float>(1 << (bits - 1))}) {
        const QRange range = {quant_min, quant_min + static_cast<float>((1 << bits) - 1)};
        for (float zero_point = range.quant_min; zero_point <= range.quant_max; ++zero_point) {
          const QParams p = make_qparams(scale, zero_point, range);
          for (float q = range.quant_min; q <= range.quant_max; ++q) {
            ASSERT_EQ(quantize_value(dequantize_value(q, p), p, range), q)
                << "scale " << scale << ", zero point " << zero_point << ", " << bits << " bits";
          }
        }
      }
    }
  }
}

TEST(ZeroPoint, FractionIsRoundedAndClamped) {
  EXPECT_EQ(effective_zero_point(2.5f, kInt8), 2.0f);
  EXPECT_EQ(effective_zero_point(3.5f, kInt8), 4.0f);
  EXPECT_EQ(effective_zero_point(-0.5f, kUInt8), 0.0f);
  EXPECT_EQ(effective_zero_point(300.0f, kUInt8), 255.0f);
  EXPECT_EQ(effective_zero_point(-129.0f, kInt8), -128.0f);
}

TEST(ValidScale, NeedsAFiniteReciprocal) {
  EXPECT_TRUE(valid_scale(1.0f));
  EXPECT_TRUE(valid_scale(kMinScale));
  EXPECT_TRUE(valid_scale(kMaxFloat));
  EXPECT_FALSE(valid_scale(0x1p-128f));  // 2^128 is no float
  EXPECT_TRUE(valid_scale(std::nextafter(0x1p-128f, 1.0f)));
  EXPECT_FALSE(valid_scale(0.0f));
  EXPECT_FALSE(valid_scale(-1.0f));
  EXPECT_FALSE(valid_scale(kInf));
  EXPECT_FALSE(valid_scale(kNaN));
}

// Inside is judged on the rounded code: half a step beyond the last code still rounds to it where it is even.
TEST(StraightThrough, PassesWhereTheUnclampedCodeIsInside) {
  const QParams p = make_qparams(1.0f, 0.0f, kUInt8);
  EXPECT_EQ(ste_grad(2.5f, 0.0f, p, kUInt8), 2.5f);
  EXPECT_EQ(ste_grad(2.5f, -0.5f, p, kUInt8), 2.5f);
  EXPECT_EQ(ste_grad(2.5f, std::nextafter(-0.5f, -1.0f), p, kUInt8), 0.0f);
  EXPECT_EQ(ste_grad(2.5f, 255.0f, p, kUInt8), 2.5f);
  EXPECT_EQ(ste_grad(2.5f, std::nextafter(255.5f, 0.0f), p, kUInt8), 2.5f);
  EXPECT_EQ(ste_grad(2.5f, 255.5f, p, kUInt8), 0.0f);
  EXPECT_EQ(ste_grad(2.5f, kInf, p, kUInt8), 0.0f);
  EXPECT_EQ(ste_grad(2.5f, -kInf, p, kUInt8), 0.0f);
  EXPECT_EQ(ste_grad(2.5f, kNaN, p, kUInt8), 0.0f);
}

// LSQ: with x_hat = rhe(x / s) * s and rounding straight through, d x_hat / d s = rhe(t) - t.
TEST(ScaleGradient, InsideIsTheRoundingError) {
  const QParams p = make_qparams(0.5f, 10.0f, kSymmetricInt8);
  EXPECT_EQ(scale_grad(2.0f, 0.625f, p, kSymmetricInt8), 2.0f * (1.0f - 1.25f));
  EXPECT_EQ(scale_grad(2.0f, 0.875f, p, kSymmetricInt8), 2.0f * (2.0f - 1.75f));
  EXPECT_EQ(scale_grad(2.0f, 1.25f, p, kSymmetricInt8), 2.0f * (2.0f - 2.5f));  // tie
  EXPECT_EQ(scale_grad(2.0f, 1.0f, p, kSymmetricInt8), 0.0f);
}

// Outside, x_hat = (q_end - z) * s.
TEST(ScaleGradient, OutsideIsTheSaturatedCode) {
  const QParams p = make_qparams(0.5f, 10.0f, kSymmetricInt8);
  EXPECT_EQ(scale_grad(2.0f, 1000.0f, p, kSymmetricInt8), 2.0f * (127.0f - 10.0f));
  EXPECT_EQ(scale_grad(2.0f, -1000.0f, p, kSymmetricInt8), 2.0f * (-127.0f - 10.0f));
  EXPECT_EQ(scale_grad(2.0f, -kInf, p, kSymmetricInt8), 2.0f * (-127.0f - 10.0f));
  EXPECT_TRUE(std::isnan(scale_grad(2.0f, kNaN, p, kSymmetricInt8)));
}

TEST(ZeroPointGradient, IsMinusScaleOutsideAndZeroInside) {
  const QParams p = make_qparams(0.5f, 10.0f, kSymmetricInt8);
  EXPECT_EQ(zero_point_grad(3.0f, 1.25f, p, kSymmetricInt8), 0.0f);
  EXPECT_EQ(zero_point_grad(3.0f, 1000.0f, p, kSymmetricInt8), -1.5f);
  EXPECT_EQ(zero_point_grad(3.0f, -1000.0f, p, kSymmetricInt8), -1.5f);
  EXPECT_EQ(zero_point_grad(3.0f, kNaN, p, kSymmetricInt8), -1.5f);
}

}  // namespace
}  // namespace torchquant::numerics
