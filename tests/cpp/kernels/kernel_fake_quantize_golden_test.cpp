// Results known from the contract alone, through the kernels of every instruction set, the reference included: ties and
// saturation by name, all 65,536 fp16 and bfloat16 values against exact arithmetic in fp64, and the order of the sums.
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <limits>

#include "kernels/fake_quantize.h"
#include "support/fake_quantize_run.h"
#include "support/isas.h"

namespace torchquant::kernels {
namespace {

using numerics::BFloat16;
using numerics::Float16;

constexpr float kInf = std::numeric_limits<float>::infinity();
constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();

class FakeQuantizeGolden : public ::testing::TestWithParam<Isa> {
 protected:
  const FakeQuantizeKernels& kernels() const { return fake_quantize_kernels(GetParam()); }
};
INSTANTIATE_TEST_SUITE_P(Isa, FakeQuantizeGolden, ::testing::ValuesIn(available_isas()), test::isa_test_name);

struct GoldenRow {
  const char* reason;
  test::FakeQuantizeCase params;
  float x;
  int code;
  float fake_quantized;
  bool gradient_passes;
};

const GoldenRow kRows[] = {
    {"tie to the even code below", {1, 0, {-128, 127}}, 2.5f, 2, 2.0f, true},
    {"tie to the even code above", {1, 0, {-128, 127}}, 3.5f, 4, 4.0f, true},
    {"negative tie to the even code above", {1, 0, {-128, 127}}, -2.5f, -2, -2.0f, true},
    {"negative tie to the even code below", {1, 0, {-128, 127}}, -3.5f, -4, -4.0f, true},
    {"odd zero point is added after rounding a tie", {1, 101, {0, 255}}, 2.5f, 103, 2.0f, true},
    {"odd zero point, negative tie", {1, 101, {0, 255}}, -1.5f, 99, -2.0f, true},
    {"tie scaled by a power of two", {0.25f, 3, {-8, 7}}, 0.625f, 5, 0.5f, true},
    {"last code of uint8", {1, 0, {0, 255}}, 255.0f, 255, 255.0f, true},
    {"just below the tie at the end of uint8", {1, 0, {0, 255}}, 255.49998f, 255, 255.0f, true},
    {"tie at the end of uint8 leaves the range", {1, 0, {0, 255}}, 255.5f, 255, 255.0f, false},
    {"tie at the start of uint8 stays in the range", {1, 0, {0, 255}}, -0.5f, 0, 0.0f, true},
    {"below the start of uint8", {1, 0, {0, 255}}, -0.50000006f, 0, 0.0f, false},
    {"tie at the end of symmetric int8", {1, 0, {-127, 127}}, 127.5f, 127, 127.0f, false},
    {"tie at the start of symmetric int8", {1, 0, {-127, 127}}, -127.5f, -127, -127.0f, false},
    {"saturates high with a zero point", {0.5f, 10, {-128, 127}}, 1e6f, 127, 58.5f, false},
    {"saturates low with a zero point", {0.5f, 10, {-128, 127}}, -1e6f, -128, -69.0f, false},
    {"largest float", {0.5f, 10, {-128, 127}}, numerics::kMaxFloat, 127, 58.5f, false},
    {"x / scale overflows", {0x1p-100f, 1, {0, 3}}, 1e30f, 3, 0x1p-99f, false},
    {"infinity", {0.5f, 10, {-128, 127}}, kInf, 127, 58.5f, false},
    {"minus infinity", {0.5f, 10, {-128, 127}}, -kInf, -128, -69.0f, false},
    {"NaN", {0.5f, 10, {-128, 127}}, kNaN, 10, kNaN, false},
    {"huge scale, result is infinite", {3e38f, 0, {-128, 127}}, 3.4e38f, 1, 3e38f, true},
    {"subnormal input", {0x1p-126f, 0, {-128, 127}}, 0x1.8p-127f, 1, 0x1p-126f, true},
};

// 33 equal inputs: every lane of two vectors and one element more.
TEST_P(FakeQuantizeGolden, TiesAndSaturationByName) {
  for (const GoldenRow& row : kRows) {
    SCOPED_TRACE(row.reason);
    const std::vector<float> x(33, row.x), grad(33, 1.5f);
    std::vector<float> y(33), grad_x(33);
    std::vector<int8_t> codes(33);
    const QParams p = row.params.qparams();
    kernels().fake_quantize_run(x.data(), y.data(), 33, FloatType::kFloat32, p, row.params.range);
    kernels().quantize_run(x.data(), codes.data(), 33, FloatType::kFloat32, p, row.params.range);
    kernels().backward_run(grad.data(), x.data(), grad_x.data(), 33, FloatType::kFloat32, p, row.params.range);
    for (int i = 0; i < 33; ++i) {
      ASSERT_EQ(codes[i], static_cast<int8_t>(row.code)) << "lane " << i;
      if (std::isnan(row.fake_quantized)) {
        ASSERT_TRUE(std::isnan(y[i])) << "lane " << i;
      } else {
        ASSERT_EQ(y[i], row.fake_quantized) << "lane " << i;
      }
      ASSERT_EQ(grad_x[i], row.gradient_passes ? 1.5f : 0.0f) << "lane " << i;
    }
  }
}

// With a scale that is a power of two, x / scale is exact, so the contract can be computed in fp64 without it.
struct ExactResult {
  double code;
  double fake_quantized;
};
ExactResult exact_result(double x, const test::FakeQuantizeCase& c) {
  if (std::isnan(x)) return {c.zero_point, x};
  const double unclamped = std::nearbyint(x / c.scale) + c.zero_point;
  const double code = std::fmin(std::fmax(unclamped, c.range.quant_min), c.range.quant_max);
  return {code, (code - c.zero_point) * c.scale};
}

template <typename T>
void expect_every_value(const FakeQuantizeKernels& kernels, FloatType type, const test::FakeQuantizeCase& c) {
  std::vector<T> x(65536), y(65536);
  std::vector<uint8_t> codes(65536);
  for (int i = 0; i < 65536; ++i) x[i].bits = static_cast<uint16_t>(i);
  kernels.fake_quantize_run(x.data(), y.data(), 65536, type, c.qparams(), c.range);
  kernels.quantize_run(x.data(), codes.data(), 65536, type, c.qparams(), c.range);
  for (int i = 0; i < 65536; ++i) {
    const double value = numerics::to_float(x[i]);
    const ExactResult want = exact_result(value, c);
    ASSERT_EQ(codes[i], static_cast<uint8_t>(static_cast<int>(want.code))) << "x = 0x" << std::hex << i;
    if (std::isnan(value)) {
      ASSERT_TRUE(std::isnan(numerics::to_float(y[i]))) << "x = 0x" << std::hex << i;
    } else {
      // + 0.0: the contract's x_hat has no negative zero.
      const T expected = numerics::from_float<T>(static_cast<float>(want.fake_quantized + 0.0));
      ASSERT_EQ(y[i].bits, expected.bits) << "x = 0x" << std::hex << i << " (" << value << ")";
    }
  }
}

TEST_P(FakeQuantizeGolden, EveryHalfPrecisionValue) {
  const test::FakeQuantizeCase cases[] = {
      {0.25f, 3, {-128, 127}}, {0x1p-6f, 101, {0, 255}}, {1.0f, 0, {-127, 127}},
      {32.0f, 7, {0, 15}},     {0x1p-14f, -3, {-8, 7}},  {0x1p-24f, 0, {0, 255}},
      {512.0f, 255, {0, 255}}, {0x1p-100f, 1, {0, 3}},   {0x1p100f, -1, {-128, 127}},
  };
  for (const test::FakeQuantizeCase& c : cases) {
    SCOPED_TRACE(::testing::Message() << c);
    ASSERT_NO_FATAL_FAILURE(expect_every_value<Float16>(kernels(), FloatType::kFloat16, c));
    ASSERT_NO_FATAL_FAILURE(expect_every_value<BFloat16>(kernels(), FloatType::kBFloat16, c));
  }
}

// Every code with every zero point of uint8 and of int8.
TEST_P(FakeQuantizeGolden, QuantizeUndoesDequantize) {
  for (const QRange range : {QRange{0, 255}, QRange{-128, 127}}) {
    std::vector<uint8_t> codes(256), back(256);
    std::vector<float> x(256);
    for (int i = 0; i < 256; ++i) codes[i] = static_cast<uint8_t>(i);
    for (float zero_point = range.quant_min; zero_point <= range.quant_max; ++zero_point) {
      const QParams p = numerics::make_qparams(0.0371f, zero_point, range);
      kernels().dequantize_run(codes.data(), x.data(), 256, range.quant_min < 0, FloatType::kFloat32, p);
      kernels().quantize_run(x.data(), back.data(), 256, FloatType::kFloat32, p, range);
      ASSERT_EQ(codes, back) << "zero point " << zero_point;
    }
  }
}

// The order that kernels/fake_quantize.h documents, spelled out once more.
TEST_P(FakeQuantizeGolden, SumsAreInTheDocumentedOrder) {
  const int64_t n = 2 * kReductionBlock + 1000 + 5;
  const QRange range = {-8, 7};
  const QParams p = numerics::make_qparams(0.3f, 1.0f, range);
  const std::vector<float> x = test::bell_values(n, 2.0f, 1), grad = test::bell_values(n, 1.0f, 2);
  double scale = 0.0, zero_point = 0.0;
  for (int64_t begin = 0; begin < n; begin += kReductionBlock) {
    for (int lane = 0; lane < 16; ++lane) {
      float scale_lane = 0.0f, zero_point_lane = 0.0f;
      for (int64_t i = begin + lane; i < std::min(begin + kReductionBlock, n); i += 16) {
        scale_lane += numerics::scale_grad(grad[i], x[i], p, range);
        zero_point_lane += numerics::zero_point_grad(grad[i], x[i], p, range);
      }
      scale += scale_lane;
      zero_point += zero_point_lane;
    }
  }
  std::vector<float> grad_x(n);
  const QParamGrads sums =
      kernels().learnable_backward_run(grad.data(), x.data(), grad_x.data(), n, FloatType::kFloat32, p, range);
  EXPECT_EQ(sums.scale, scale);
  EXPECT_EQ(sums.zero_point, zero_point);
  EXPECT_NE(scale, 0.0);
  EXPECT_NE(zero_point, 0.0);
}

TEST_P(FakeQuantizeGolden, MinMaxLeavesOutAndCountsNonFiniteValues) {
  const std::vector<float> x = {kNaN, 3.0f, kInf, -2.0f, -kInf, 0.5f, -kNaN};
  const MinMax found = kernels().min_max_run(x.data(), 7, FloatType::kFloat32);
  EXPECT_EQ(found.min_val, -2.0f);
  EXPECT_EQ(found.max_val, 3.0f);
  EXPECT_EQ(found.nonfinite, 4);
  std::vector<float> min_val(7, kInf), max_val(7, -kInf);
  EXPECT_EQ(kernels().min_max_each(x.data(), 7, FloatType::kFloat32, min_val.data(), max_val.data()), 4);
  EXPECT_EQ(min_val, (std::vector<float>{kInf, 3.0f, kInf, -2.0f, kInf, 0.5f, kInf}));
  EXPECT_EQ(max_val, (std::vector<float>{-kInf, 3.0f, -kInf, -2.0f, -kInf, 0.5f, -kInf}));
}

TEST_P(FakeQuantizeGolden, MinMaxOfNothingIsEmpty) {
  const std::vector<float> nothing(40, kNaN);
  for (int64_t n : {int64_t{0}, int64_t{7}, int64_t{40}}) {
    const MinMax found = kernels().min_max_run(nothing.data(), n, FloatType::kFloat32);
    EXPECT_EQ(found.min_val, kInf) << n;
    EXPECT_EQ(found.max_val, -kInf) << n;
    EXPECT_EQ(found.nonfinite, n);
  }
}

TEST_P(FakeQuantizeGolden, MinMaxHasNoNegativeZero) {
  const std::vector<float> zeros(20, -0.0f);
  const MinMax found = kernels().min_max_run(zeros.data(), 20, FloatType::kFloat32);
  EXPECT_FALSE(std::signbit(found.min_val));
  EXPECT_FALSE(std::signbit(found.max_val));
}

}  // namespace
}  // namespace torchquant::kernels
