// Layer norm and sums of every instruction set against the reference, bit by bit, at row lengths around the 16 lanes,
// and the reference against fp64.
#include "kernels/float_rows.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <limits>
#include <vector>

#include "support/rng.h"

namespace torchquant::kernels {
namespace {

constexpr float kUntouched = -12345.0f;
constexpr int64_t kRows = 3;

// Rows whose mean is far from zero, so that an order of sums shows.
struct Problem {
  explicit Problem(int64_t columns, uint64_t seed = 5) : columns(columns), x(kRows * columns) {
    test::Random random(seed);
    for (float& value : x) value = random.uniform(-2.0f, 9.0f);
    for (int64_t i = 0; i < columns; ++i) {
      weight.push_back(random.uniform(0.5f, 1.5f));
      bias.push_back(random.uniform(-1.0f, 1.0f));
    }
  }

  // Every row by a call of its own, in reverse, and nothing may be written beyond the outputs.
  std::vector<float> run(Isa isa, bool affine) const {
    std::vector<float> out(x.size() + 16, kUntouched);
    const LayerNormArgs args{columns, x.data(),  affine ? weight.data() : nullptr, affine ? bias.data() : nullptr,
                             1e-5f,   out.data()};
    for (int64_t row = kRows; row-- > 0;) float_row_kernels(isa).layer_norm(args, {row, row + 1});
    for (int i = 0; i < 16; ++i) EXPECT_EQ(out[x.size() + i], kUntouched);
    out.resize(x.size());
    return out;
  }

  double expected(int64_t row, int64_t column) const {
    double mean = 0.0, variance = 0.0;
    const float* values = x.data() + row * columns;
    for (int64_t i = 0; i < columns; ++i) mean += static_cast<double>(values[i]) / static_cast<double>(columns);
    for (int64_t i = 0; i < columns; ++i) {
      const double centred = static_cast<double>(values[i]) - mean;
      variance += centred * centred / static_cast<double>(columns);
    }
    return (static_cast<double>(values[column]) - mean) / std::sqrt(variance + 1e-5) *
               static_cast<double>(weight[column]) +
           static_cast<double>(bias[column]);
  }

  int64_t columns;
  std::vector<float> x, weight, bias;
};

void expect_same_bits(const std::vector<float>& actual, const std::vector<float>& expected, Isa isa, int64_t n) {
  EXPECT_EQ(memcmp(actual.data(), expected.data(), expected.size() * sizeof(float)), 0)
      << isa_name(isa) << ", " << n << " values";
}

TEST(LayerNorm, EveryInstructionSetGivesTheReferencesBits) {
  for (const int64_t columns : {1, 2, 7, 15, 16, 17, 31, 32, 33, 100, 768}) {
    const Problem problem(columns);
    for (const bool affine : {false, true}) {
      const std::vector<float> expected = problem.run(Isa::kReference, affine);
      for (const Isa isa : available_isas()) expect_same_bits(problem.run(isa, affine), expected, isa, columns);
    }
  }
}

TEST(LayerNorm, SumsAreInTheDocumentedOrder) {
  // Each lane sums two values that cancel but for 1; adding in the order of the row would lose it beside 2^25.
  const float big = 33554432.0f;
  std::vector<float> x(32);
  for (int i = 0; i < 16; ++i) {
    x[i] = i == 0 ? big : 1.0f;
    x[16 + i] = i == 0 ? -big : 0.0f;
  }
  for (const Isa isa : available_isas()) {
    std::vector<float> out(32);
    float_row_kernels(isa).layer_norm({32, x.data(), nullptr, nullptr, 0.0f, out.data()}, {0, 1});
    const float mean = 15.0f / 32.0f;
    EXPECT_FLOAT_EQ(out[1] / out[16 + 1], (1.0f - mean) / (0.0f - mean)) << isa_name(isa);
  }
}

TEST(LayerNorm, ReferenceIsNearTheFormula) {
  const Problem problem(45);
  const std::vector<float> actual = problem.run(Isa::kReference, /*affine=*/true);
  for (int64_t row = 0; row < kRows; ++row) {
    for (int64_t i = 0; i < 45; ++i) EXPECT_NEAR(actual[row * 45 + i], problem.expected(row, i), 2e-6);
  }
}

TEST(LayerNorm, ARowOfOneValueRepeatedGivesTheBias) {
  const std::vector<float> x(20, 3.25f), weight(20, 2.0f), bias(20, 0.75f);
  for (const Isa isa : available_isas()) {
    std::vector<float> out(20);
    float_row_kernels(isa).layer_norm({20, x.data(), weight.data(), bias.data(), 1e-5f, out.data()}, {0, 1});
    EXPECT_EQ(out, bias) << isa_name(isa);
  }
}

TEST(LayerNorm, NanAndInfinityStayInTheirRow) {
  Problem problem(33);
  problem.x[5] = std::numeric_limits<float>::quiet_NaN();
  problem.x[33 + 20] = std::numeric_limits<float>::infinity();
  for (const Isa isa : available_isas()) {
    const std::vector<float> out = problem.run(isa, /*affine=*/true);
    for (int64_t i = 0; i < 66; ++i) EXPECT_TRUE(std::isnan(out[i])) << isa_name(isa);
    for (int64_t i = 66; i < 99; ++i) EXPECT_TRUE(std::isfinite(out[i])) << isa_name(isa);
  }
}

TEST(AddFloats, EveryInstructionSetAddsAPartAndMayAddInPlace) {
  const Problem problem(50);
  for (const Isa isa : available_isas()) {
    std::vector<float> sums = problem.x;
    float_row_kernels(isa).add({sums.data(), problem.x.data(), sums.data()}, {3, 96});
    for (int64_t i = 0; i < 150; ++i) {
      EXPECT_EQ(sums[i], i >= 3 && i < 96 ? problem.x[i] + problem.x[i] : problem.x[i]) << isa_name(isa);
    }
  }
}

}  // namespace
}  // namespace torchquant::kernels
