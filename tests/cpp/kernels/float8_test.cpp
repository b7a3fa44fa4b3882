// The fp8 kernels of every instruction set against the contract, value by value.
#include "kernels/float8.h"

#include <gtest/gtest.h>

#include <cmath>
#include <string>
#include <tuple>
#include <vector>

#include "numerics/dynamic.h"
#include "numerics/float8.h"
#include "support/isas.h"
#include "support/rows.h"

namespace torchquant::kernels {
namespace {

using numerics::Float8E4M3;
using numerics::Float8E5M2;

class Float8Kernel : public ::testing::TestWithParam<std::tuple<Isa, Float8Type>> {
 protected:
  const Float8Kernels& kernels() const { return float8_kernels(std::get<0>(GetParam())); }
  Float8Type type() const { return std::get<1>(GetParam()); }

  uint8_t code(float x) const {
    return type() == Float8Type::kE4M3 ? numerics::float8_code<Float8E4M3>(x) : numerics::float8_code<Float8E5M2>(x);
  }
  float value(uint8_t code) const {
    return type() == Float8Type::kE4M3 ? numerics::float8_value<Float8E4M3>(code)
                                       : numerics::float8_value<Float8E5M2>(code);
  }

  // All four kernels on one row.
  void agrees(const std::vector<float>& x) const {
    const auto n = static_cast<int64_t>(x.size());
    float largest = 0.0f;
    for (const float v : x) largest = std::isfinite(v) ? std::max(largest, std::fabs(v)) : largest;
    const float scale = kernels().scale_of(x.data(), n, type());
    const float wanted = largest / (type() == Float8Type::kE4M3 ? 448.0f : 57344.0f);
    ASSERT_EQ(scale, wanted < 0x1p-100f ? 1.0f : wanted);
    std::vector<uint8_t> codes(x.size() + 1, 0xA5);
    std::vector<float> values(x.size() + 1, -99.0f), fake(values);
    kernels().quantize(x.data(), n, scale, type(), codes.data());
    kernels().dequantize(codes.data(), n, scale, type(), values.data());
    kernels().fake_quantize(x.data(), n, scale, type(), fake.data());
    for (size_t i = 0; i < x.size(); ++i) {
      ASSERT_EQ(codes[i], code(x[i] * (1.0f / scale))) << "value " << x[i] << " at " << i << " of " << x.size();
      const float expected = value(codes[i]) * scale;
      if (std::isnan(expected)) {
        ASSERT_TRUE(std::isnan(values[i]) && std::isnan(fake[i])) << i;
      } else {
        ASSERT_EQ(numerics::float_to_bits(values[i]), numerics::float_to_bits(expected)) << i;
        ASSERT_EQ(numerics::float_to_bits(fake[i]), numerics::float_to_bits(expected)) << i;
      }
    }
    EXPECT_TRUE(codes.back() == 0xA5 && values.back() == -99.0f && fake.back() == -99.0f) << "wrote beyond the row";
  }
};

TEST_P(Float8Kernel, EveryLength) {
  test::for_rows_of_every_length([this](const std::vector<float>& x) { agrees(x); });
}

TEST_P(Float8Kernel, AnyBits) {
  test::for_rows_of_any_bits([this](const std::vector<float>& x) { agrees(x); });
}

TEST_P(Float8Kernel, SpecialRows) {
  test::for_special_rows([this](const std::vector<float>& x) { agrees(x); });
}

TEST_P(Float8Kernel, EveryCodeAndTheTiesBetween) {
  std::vector<float> x = {type() == Float8Type::kE4M3 ? 448.0f : 57344.0f};  // so that the scale is 1
  for (int c = 0; c < 256; ++c) {
    const float low = value(static_cast<uint8_t>(c)), high = value(static_cast<uint8_t>(c + 1));
    if (!std::isfinite(low) || !std::isfinite(high)) continue;
    x.push_back(low);
    x.push_back(0.5f * (low + high));
  }
  agrees(x);
}

std::string test_name(const ::testing::TestParamInfo<std::tuple<Isa, Float8Type>>& info) {
  return std::string(isa_name(std::get<0>(info.param))) +
         (std::get<1>(info.param) == Float8Type::kE4M3 ? "_e4m3" : "_e5m2");
}

INSTANTIATE_TEST_SUITE_P(Isa, Float8Kernel,
                         ::testing::Combine(::testing::ValuesIn(available_isas()),
                                            ::testing::Values(Float8Type::kE4M3, Float8Type::kE5M2)),
                         test_name);

}  // namespace
}  // namespace torchquant::kernels
