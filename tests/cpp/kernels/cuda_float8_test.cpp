// The fp8 kernels of CUDA (run by the emulation) against those of the CPU, bit by bit: rows around the lengths at which
// another kernel runs, addresses and lengths that are no multiple of 4, special values, padding.
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <string>
#include <vector>

#include "kernels/cuda/float8.h"
#include "kernels/float8.h"
#include "support/halves.h"
#include "support/rng.h"

namespace torchquant::kernels {
namespace {

using test::Random;

constexpr FloatType kTypes[] = {FloatType::kFloat32, FloatType::kBFloat16, FloatType::kFloat16};
constexpr Float8Type kFormats[] = {Float8Type::kE4M3, Float8Type::kE5M2};
const Float8Kernels& reference() { return float8_kernels(Isa::kReference); }

std::vector<float> special_rows(int64_t rows, int64_t depth, Random& random) {
  std::vector<float> x(rows * depth);
  for (float& v : x) v = random.bell(2.0f);
  for (int64_t d = 0; d < depth; ++d) x[d] = 0.0f;
  if (rows > 1) x[depth] = INFINITY;
  if (rows > 2) x[2 * depth] = NAN;
  if (rows > 3) x[3 * depth] = 1e-30f;
  return x;
}

// NaN may differ in its payload.
void expect_same(const std::vector<float>& actual, const std::vector<float>& expected) {
  ASSERT_EQ(actual.size(), expected.size());
  for (size_t i = 0; i < expected.size(); ++i) {
    if (std::isnan(expected[i]) && std::isnan(actual[i])) continue;
    ASSERT_EQ(std::memcmp(&actual[i], &expected[i], 4), 0) << i << ": " << actual[i] << ", not " << expected[i];
  }
}

void expect_rows(int64_t rows, int64_t depth, FloatType type, Float8Type format, Random& random) {
  SCOPED_TRACE(std::to_string(rows) + " x " + std::to_string(depth) + ", type " +
               std::to_string(static_cast<int>(type)) + ", format " + std::to_string(static_cast<int>(format)));
  const auto stored = test::narrowed(special_rows(rows, depth, random), type);
  const auto x = test::widened(stored, type);
  const int64_t pitch = (depth + 15) / 16 * 16;
  std::vector<float> scale(rows), fake(rows * depth), fixed_fake(rows * depth);
  std::vector<uint8_t> codes(rows * pitch), fixed(rows * depth);
  for (int64_t r = 0; r < rows; ++r) {
    const float* row = x.data() + r * depth;
    scale[r] = reference().scale_of(row, depth, format);
    reference().quantize(row, depth, scale[r], format, codes.data() + r * pitch);
    reference().fake_quantize(row, depth, scale[r], format, fake.data() + r * depth);
    reference().quantize(row, depth, 0.25f, format, fixed.data() + r * depth);
    reference().fake_quantize(row, depth, 0.25f, format, fixed_fake.data() + r * depth);
  }
  const cuda::FloatRows from{stored.data(), type, rows, depth};
  const float quarter = 0.25f;

  std::vector<float> actual_scale(rows);
  std::vector<uint8_t> actual(rows * pitch, 0xA5);
  ASSERT_EQ(cuda::quantize_float8_dynamic(from, format, actual.data(), pitch, actual_scale.data(), nullptr),
            cudaSuccess);
  EXPECT_EQ(actual_scale, scale);
  EXPECT_EQ(actual, codes);
  actual.assign(rows * pitch, 0xA5);
  ASSERT_EQ(cuda::quantize_float8(from, {scale.data(), true}, format, actual.data(), pitch, nullptr), cudaSuccess);
  EXPECT_EQ(actual, codes);
  actual.assign(rows * depth, 0xA5);
  ASSERT_EQ(cuda::quantize_float8(from, {&quarter, false}, format, actual.data(), depth, nullptr), cudaSuccess);
  EXPECT_EQ(actual, fixed);

  std::vector<unsigned char> y(stored.size(), 0xA5);
  const auto narrow = [type](const std::vector<float>& v) { return test::widened(test::narrowed(v, type), type); };
  ASSERT_EQ(cuda::fake_quantize_float8(from, {nullptr, true}, format, y.data(), nullptr), cudaSuccess);
  expect_same(test::widened(y, type), narrow(fake));
  ASSERT_EQ(cuda::fake_quantize_float8(from, {&quarter, false}, format, y.data(), nullptr), cudaSuccess);
  expect_same(test::widened(y, type), narrow(fixed_fake));
  ASSERT_EQ(cuda::dequantize_float8(fixed.data(), rows, depth, {&quarter, false}, format, y.data(), type, nullptr),
            cudaSuccess);
  expect_same(test::widened(y, type), narrow(fixed_fake));
}

TEST(CudaFloat8, RowsOfEveryKindGiveTheBitsOfTheCpu) {
  Random random(1);
  for (const FloatType type : kTypes) {
    for (const Float8Type format : kFormats) {
      for (const int64_t depth : {1, 3, 64, 130, 512, 513, 1031}) expect_rows(5, depth, type, format, random);
      expect_rows(19, 36, type, format, random);
    }
  }
}

TEST(CudaFloat8, EveryCodeDecodes) {
  std::vector<uint8_t> codes(256);
  for (int c = 0; c < 256; ++c) codes[c] = static_cast<uint8_t>(c);
  const float one = 1.0f;
  for (const Float8Type format : kFormats) {
    std::vector<float> expected(256), actual(256);
    reference().dequantize(codes.data(), 256, 1.0f, format, expected.data());
    ASSERT_EQ(cuda::dequantize_float8(codes.data(), 1, 256, {&one, false}, format, actual.data(), FloatType::kFloat32,
                                      nullptr),
              cudaSuccess);
    expect_same(actual, expected);
  }
}

TEST(CudaFloat8, SumsAreScaledAsTheFormulaSays) {
  Random random(2);
  constexpr int64_t kRows = 3, kChannels = 261, kPitch = 272;
  std::vector<float> sums(kRows * kPitch), row_scale(kRows), channel_scale(kChannels), bias(kChannels);
  for (std::vector<float>* values : {&sums, &row_scale, &channel_scale, &bias}) {
    for (float& v : *values) v = random.bell(1.0f);
  }
  for (const bool per_row : {true, false}) {
    for (const bool has_bias : {true, false}) {
      std::vector<float> out(kRows * kChannels, -99.0f);
      const cuda::ScaleSumsArgs args{sums.data(),
                                     kPitch,
                                     kRows,
                                     kChannels,
                                     {row_scale.data(), per_row},
                                     {channel_scale.data(), !per_row},
                                     has_bias ? bias.data() : nullptr,
                                     out.data()};
      ASSERT_EQ(cuda::scale_sums(args, FloatType::kFloat32, nullptr), cudaSuccess);
      for (int64_t r = 0; r < kRows; ++r) {
        for (int64_t c = 0; c < kChannels; ++c) {
          const float scale = row_scale[per_row ? r : 0] * channel_scale[per_row ? 0 : c];
          ASSERT_EQ(out[r * kChannels + c], std::fmaf(sums[r * kPitch + c], scale, has_bias ? bias[c] : 0.0f));
        }
      }
    }
  }
}

}  // namespace
}  // namespace torchquant::kernels
