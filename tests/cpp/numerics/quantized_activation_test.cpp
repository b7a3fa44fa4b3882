// The activation polynomials: their stated errors against fp64 over the whole range, their special values, and a
// checksum of their bits, which must be the same on every machine.
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <functional>
#include <limits>
#include <string>
#include <vector>

#include "numerics/activation.h"

namespace torchquant::numerics {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();

float from_bits(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof(value));
  return value;
}

// Every 997th float of all 2^32, and a dense grid where activations bend.
void for_each_input(const std::function<void(float)>& fn) {
  for (uint64_t bits = 0; bits < (uint64_t{1} << 32); bits += 997) {
    const float x = from_bits(static_cast<uint32_t>(bits));
    if (std::isfinite(x)) fn(x);
  }
  for (int i = -200000; i <= 200000; ++i) fn(static_cast<float>(i) * 1e-4f);
}

enum class ErrorKind { kRelative, kAbsolute };

struct Case {
  std::string name;
  float (*actual)(float);
  double (*expected)(double);
  ErrorKind kind;
  double bound;
  float lo;  // inputs outside [lo, hi] are not part of the statement
  float hi;
};

void PrintTo(const Case& c, std::ostream* stream) { *stream << c.name; }

double sigmoid(double x) { return 1.0 / (1.0 + std::exp(-x)); }
double gelu(double x) { return 0.5 * x * std::erfc(-x / std::sqrt(2.0)); }
double gelu_tanh(double x) { return x * sigmoid(2.0 * std::sqrt(2.0 / M_PI) * (x + 0.044715 * x * x * x)); }
double silu(double x) { return x * sigmoid(x); }
double hardsigmoid(double x) { return std::fmin(std::fmax(x + 3.0, 0.0), 6.0) / 6.0; }
double hardswish(double x) { return x * hardsigmoid(x); }

// The bounds that activation.h states.
const std::vector<Case>& cases() {
  constexpr auto kRelative = ErrorKind::kRelative;
  constexpr auto kAbsolute = ErrorKind::kAbsolute;
  constexpr float kLargest = std::numeric_limits<float>::max();
  static const std::vector<Case> all{
      {"exp", exp_f32, std::exp, kRelative, 1.0e-7, -87.3f, 88.7f},
      {"sigmoid", sigmoid_f32, sigmoid, kRelative, 2.0e-7, -87.0f, kLargest},
      {"tanh", tanh_f32, std::tanh, kRelative, 1.6e-7, -kLargest, kLargest},
      {"erf", erf_f32, std::erf, kRelative, 1.0e-7, -kLargest, kLargest},
      {"silu", silu_f32, silu, kAbsolute, 1.6e-7, -kLargest, kLargest},
      {"gelu", gelu_f32, gelu, kAbsolute, 1.6e-7, -kLargest, kLargest},
      {"gelu_tanh", gelu_tanh_f32, gelu_tanh, kAbsolute, 1.6e-7, -kLargest, kLargest},
      {"hardsigmoid", hardsigmoid_f32, hardsigmoid, kAbsolute, 1.6e-7, -kLargest, kLargest},
      {"hardswish", hardswish_f32, hardswish, kAbsolute, 1.6e-7, -kLargest, kLargest},
  };
  return all;
}

class ActivationError : public testing::TestWithParam<Case> {};

TEST_P(ActivationError, StaysBelowItsStatedBound) {
  const Case& c = GetParam();
  double worst = 0.0;
  float worst_x = 0.0f;
  for_each_input([&](float x) {
    if (x < c.lo || x > c.hi) return;
    const double expected = c.expected(x);
    // Relative error means nothing for results that are subnormal in fp32.
    if (c.kind == ErrorKind::kRelative && std::fabs(expected) < std::numeric_limits<float>::min()) return;
    const double unit = c.kind == ErrorKind::kRelative ? std::fabs(expected) : std::fmax(1.0, std::fabs(x));
    const double error = std::fabs(static_cast<double>(c.actual(x)) - expected) / unit;
    if (!(error <= worst)) {  // also catches NaN
      worst = error;
      worst_x = x;
    }
  });
  EXPECT_LE(worst, c.bound) << "at x = " << worst_x;
}

INSTANTIATE_TEST_SUITE_P(All, ActivationError, testing::ValuesIn(cases()),
                         [](const auto& info) { return info.param.name; });

// FNV-1a over the bits of every output. A compiler that fuses or reorders, or a libm call that slips in, changes it.
uint64_t checksum(float (*fn)(float)) {
  uint64_t hash = 0xcbf29ce484222325u;
  for_each_input([&](float x) {
    uint32_t bits;
    const float y = fn(x);
    std::memcpy(&bits, &y, sizeof(bits));
    hash = (hash ^ bits) * 0x100000001b3u;
  });
  return hash;
}

TEST(Activation, BitsAreTheSameEverywhere) {
  EXPECT_EQ(checksum(exp_f32), 0xe28cb72dde9743b5u);
  EXPECT_EQ(checksum(sigmoid_f32), 0xf3583674647eb566u);
  EXPECT_EQ(checksum(tanh_f32), 0x81df955d88e0ae79u);
  EXPECT_EQ(checksum(erf_f32), 0x3cb1fc9520b4762cu);
  EXPECT_EQ(checksum(silu_f32), 0xd27373a2a9a3cc34u);
  EXPECT_EQ(checksum(gelu_f32), 0xa03051588401c055u);
  EXPECT_EQ(checksum(gelu_tanh_f32), 0xfc43c63ce6fb573eu);
  EXPECT_EQ(checksum(hardswish_f32), 0xc2155b50650b797fu);
}

TEST(Activation, ExpMeetsTheEndsOfTheFloatRange) {
  EXPECT_EQ(exp_f32(0.0f), 1.0f);
  EXPECT_EQ(exp_f32(-0.0f), 1.0f);
  EXPECT_TRUE(std::isfinite(exp_f32(88.72f)));  // largest finite result is exp(88.7228...)
  EXPECT_EQ(exp_f32(88.73f), kInfinity);
  EXPECT_EQ(exp_f32(kInfinity), kInfinity);
  EXPECT_GT(exp_f32(-103.2f), 0.0f);  // subnormal
  EXPECT_EQ(exp_f32(-104.1f), 0.0f);
  EXPECT_EQ(exp_f32(-kInfinity), 0.0f);
  EXPECT_TRUE(std::isnan(exp_f32(std::nanf(""))));
}

TEST(Activation, SaturatesExactlyAtInfinity) {
  EXPECT_EQ(sigmoid_f32(kInfinity), 1.0f);
  EXPECT_EQ(sigmoid_f32(-kInfinity), 0.0f);
  EXPECT_EQ(tanh_f32(kInfinity), 1.0f);
  EXPECT_EQ(tanh_f32(-kInfinity), -1.0f);
  EXPECT_EQ(erf_f32(kInfinity), 1.0f);
  EXPECT_EQ(erf_f32(-kInfinity), -1.0f);
  EXPECT_EQ(hardsigmoid_f32(-kInfinity), 0.0f);
}

TEST(Activation, ZeroStaysZeroAndOddFunctionsAreOdd) {
  for (const auto fn : {tanh_f32, erf_f32, silu_f32, gelu_f32, gelu_tanh_f32, hardswish_f32}) {
    EXPECT_EQ(fn(0.0f), 0.0f);
  }
  for_each_input([](float x) {
    ASSERT_EQ(tanh_f32(-x), -tanh_f32(x));
    ASSERT_EQ(erf_f32(-x), -erf_f32(x));
  });
}

TEST(Activation, NanPassesThrough) {
  for (const auto fn : {exp_f32, sigmoid_f32, tanh_f32, erf_f32, silu_f32, gelu_f32, gelu_tanh_f32, hardswish_f32}) {
    EXPECT_TRUE(std::isnan(fn(std::nanf(""))));
  }
}

}  // namespace
}  // namespace torchquant::numerics
