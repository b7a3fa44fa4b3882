// quantize_row() of every instruction set against the contract, value by value.
#include "kernels/quantize_rows.h"

#include <gtest/gtest.h>

#include <cmath>
#include <vector>

#include "numerics/affine.h"
#include "numerics/qparams.h"
#include "support/isas.h"
#include "support/rows.h"

namespace torchquant::kernels {
namespace {

using numerics::QRange;

class QuantizeRows : public ::testing::TestWithParam<Isa> {
 protected:
  static void agrees(const std::vector<float>& x) {
    constexpr QRange kRange{-127.0f, 127.0f};
    float largest = 0.0f;
    for (const float v : x) largest = std::isfinite(v) ? std::max(largest, std::fabs(v)) : largest;
    const auto chosen = numerics::choose_symmetric_qparams(-largest, largest, kRange);
    const auto qparams = numerics::make_qparams(chosen.scale, 0.0f, kRange);
    std::vector<uint8_t> codes(x.size() + 1, 0xA5);
    EXPECT_EQ(quantize_row(GetParam())(x.data(), static_cast<int64_t>(x.size()), codes.data()), chosen.scale);
    for (size_t i = 0; i < x.size(); ++i) {
      ASSERT_EQ(codes[i], 128 + static_cast<int>(numerics::quantize_value(x[i], qparams, kRange)))
          << "value " << x[i] << " at " << i << " of " << x.size();
    }
    EXPECT_EQ(codes.back(), 0xA5) << "wrote beyond the row";
  }
};

TEST_P(QuantizeRows, EveryLength) {
  test::for_rows_of_every_length([this](const std::vector<float>& x) { agrees(x); });
}

TEST_P(QuantizeRows, AnyBits) {
  test::for_rows_of_any_bits([this](const std::vector<float>& x) { agrees(x); });
}

TEST_P(QuantizeRows, SpecialRows) {
  test::for_special_rows([this](const std::vector<float>& x) { agrees(x); });
}

TEST_P(QuantizeRows, TiesRoundToEven) {
  std::vector<float> x = {127.0f};
  for (int i = -126; i <= 126; ++i) x.push_back(static_cast<float>(i) + 0.5f);
  agrees(x);
}

INSTANTIATE_TEST_SUITE_P(Isa, QuantizeRows, ::testing::ValuesIn(available_isas()), test::isa_test_name);

}  // namespace
}  // namespace torchquant::kernels
