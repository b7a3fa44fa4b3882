// Weight-only products of every instruction set against fp64, within the error bound that docs/numerics.md states, at
// depths, groups, channels and rows around the kernels' chunks, blocks and tiles.
#include "kernels/weight_only.h"

#include <gtest/gtest.h>

#include <cmath>
#include <string>
#include <vector>

#include "kernels/quantized_kernels.h"
#include "numerics/int4.h"
#include "support/isas.h"
#include "support/rng.h"

namespace torchquant::kernels {
namespace {

using test::Random;

constexpr float kUntouched = -12345.0f;

// A layer with everything that it needs to run, packed and as stored.
struct Layer {
  Layer(int64_t channels, int64_t depth, int64_t group_size, int32_t bits, bool zero_points, Random& random)
      : shape{channels, depth, group_size, bits, bits == 4 ? -8 : -127, zero_points}, codes(channels * depth) {
    const int64_t lowest = shape.quant_min, highest = bits == 4 ? 7 : 127;
    for (int8_t& code : codes) code = static_cast<int8_t>(random.integer(lowest, highest));
    const int64_t groups = depth / group_size;
    for (int64_t i = 0; i < channels * groups; ++i) {
      scale.push_back(random.uniform(0.001f, 0.1f));
      if (zero_points) zero_point.push_back(static_cast<float>(random.integer(lowest, highest)));
      bias.push_back(random.uniform(-1.0f, 1.0f));
    }
    store();
    pack();
  }

  void store() {
    if (shape.bits == 8) {
      stored.assign(codes.begin(), codes.end());
      return;
    }
    const int64_t row_bytes = numerics::int4_bytes(shape.depth);
    stored.resize(shape.out_channels * row_bytes);
    for (int64_t c = 0; c < shape.out_channels; ++c) {
      numerics::pack_int4(&codes[c * shape.depth], shape.depth, shape.quant_min, &stored[c * row_bytes]);
    }
  }

  void pack() {
    const WeightOnlyLayout layout(shape);
    packed.assign(layout.blocks * layout.block_bytes, 0xA5);
    for (int64_t block = 0; block < layout.blocks; ++block) {
      pack_weight_only(shape, stored.data(), scale.data(), zero_point.data(), {block, block + 1}, packed.data());
    }
  }

  double weight(int64_t channel, int64_t k) const {
    const int64_t group = channel * (shape.depth / shape.group_size) + k / shape.group_size;
    const double zero = shape.has_zero_points ? zero_point[group] : 0.0;
    return (codes[channel * shape.depth + k] - zero) * static_cast<double>(scale[group]);
  }

  WeightOnlyShape shape;
  std::vector<int8_t> codes;
  std::vector<uint8_t> stored, packed;
  std::vector<float> scale, zero_point, bias;
};

void expect_within_bound(const Layer& layer, const std::vector<float>& x, const std::vector<float>& out, int64_t rows,
                         bool biased) {
  const int64_t depth = layer.shape.depth, channels = layer.shape.out_channels;
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t c = 0; c < channels; ++c) {
      double exact = biased ? layer.bias[c] : 0.0;
      double magnitude = std::fabs(exact);
      for (int64_t k = 0; k < depth; ++k) {
        const double term = static_cast<double>(x[r * depth + k]) * layer.weight(c, k);
        exact += term;
        magnitude += std::fabs(term);
      }
      const double bound = (static_cast<double>(depth) / 16 + 20) * std::ldexp(magnitude, -24);
      ASSERT_LE(std::fabs(out[r * channels + c] - exact), bound) << "row " << r << ", channel " << c;
    }
  }
}

class WeightOnly : public ::testing::TestWithParam<Isa> {
 protected:
  void SetUp() override {
    kernel = quantized_kernels(GetParam()).linear_weight_only_packed;
    ASSERT_NE(kernel, nullptr);
  }

  std::vector<float> run(const Layer& layer, const std::vector<float>& x, int64_t rows, bool biased,
                         ActivationSpec activation = numerics::no_activation()) {
    std::vector<float> out(rows * layer.shape.out_channels + 16, kUntouched);
    const WeightOnlyLayout layout(layer.shape);
    const PackedWeightOnlyArgs args{
        x.data(), rows, layer.shape, layer.packed.data(), biased ? layer.bias.data() : nullptr, activation, out.data()};
    const int64_t middle = layout.blocks / 2;
    kernel(args, {0, middle});
    kernel(args, {middle, layout.blocks});
    for (size_t i = rows * layer.shape.out_channels; i < out.size(); ++i) EXPECT_EQ(out[i], kUntouched);
    return out;
  }

  void (*kernel)(const PackedWeightOnlyArgs&, IndexRange) = nullptr;
};

std::vector<float> inputs(int64_t n, Random& random) {
  std::vector<float> x(n);
  for (float& value : x) value = random.bell(1.0f);
  if (n > 3) x[n / 3] = 1000.0f;  // an outlier: the other products must not drown in its error
  return x;
}

TEST_P(WeightOnly, StaysWithinTheBoundForEveryShape) {
  Random random(1);
  for (const int32_t bits : {4, 8}) {
    for (const bool zero_points : {false, true}) {
      for (const auto& [depth, group_size] : std::vector<std::pair<int64_t, int64_t>>{{1, 1},
                                                                                      {7, 7},
                                                                                      {8, 8},
                                                                                      {9, 3},
                                                                                      {63, 63},
                                                                                      {64, 32},
                                                                                      {65, 65},
                                                                                      {96, 32},
                                                                                      {130, 13},
                                                                                      {256, 128},
                                                                                      {1000, 1000}}) {
        for (const int64_t channels : {1, 15, 16, 17, 33, 48}) {
          Layer layer(channels, depth, group_size, bits, zero_points, random);
          for (const int64_t rows : {1, 2, 3, 8, 11, 31, 32, 33, 47}) {
            const auto x = inputs(rows * depth, random);
            SCOPED_TRACE(std::to_string(bits) + " bits, depth " + std::to_string(depth) + ", groups of " +
                         std::to_string(group_size) + ", " + std::to_string(channels) + " channels, " +
                         std::to_string(rows) + " rows" + (zero_points ? ", zero points" : ""));
            const bool biased = random.integer(0, 1) == 1;
            ASSERT_NO_FATAL_FAILURE(expect_within_bound(layer, x, run(layer, x, rows, biased), rows, biased));
          }
        }
      }
    }
  }
}

// One large term, and many that are each lost when they are added to it one by one: long chains of additions would
// show.
TEST_P(WeightOnly, SmallTermsCountBesideALargeOne) {
  Random random(2);
  for (const int32_t bits : {4, 8}) {
    Layer layer(16, 16384, 16384, bits, false, random);
    layer.codes.assign(layer.codes.size(), 1);
    layer.scale.assign(layer.scale.size(), 1.0f);
    layer.store();
    layer.pack();
    for (const int64_t rows : {1, 8, 11}) {
      std::vector<float> x(rows * 16384, 0x1.6p-25f);
      for (int64_t r = 0; r < rows; ++r) x[r * 16384] = 1.0f;
      ASSERT_NO_FATAL_FAILURE(expect_within_bound(layer, x, run(layer, x, rows, false), rows, false));
    }
  }
}

TEST_P(WeightOnly, WeightsOfZeroGiveTheBias) {
  Random random(3);
  for (const int32_t bits : {4, 8}) {
    Layer layer(20, 64, 32, bits, true, random);
    for (int64_t c = 0; c < 20; ++c) {
      for (int64_t k = 0; k < 64; ++k) layer.codes[c * 64 + k] = static_cast<int8_t>(layer.zero_point[c * 2 + k / 32]);
    }
    layer.store();
    layer.pack();
    for (const int64_t rows : {1, 8, 33}) {
      const auto out = run(layer, inputs(rows * 64, random), rows, true);
      for (int64_t i = 0; i < rows * 20; ++i) ASSERT_EQ(out[i], layer.bias[i % 20]);
    }
  }
}

TEST_P(WeightOnly, KeepsInfinitiesNanAndTinyValues) {
  Random random(5);
  Layer layer(16, 64, 32, 4, false, random);
  layer.codes.assign(layer.codes.size(), 1);
  layer.scale.assign(layer.scale.size(), 1.0f);
  layer.store();
  layer.pack();
  for (const float value : {INFINITY, -INFINITY, 3e38f, 0x1p-100f, 0x1p-149f}) {
    std::vector<float> x(64, 0.0f);
    x[40] = value;
    for (const float y : run(layer, x, 1, false)) {
      if (y != kUntouched) {
        ASSERT_EQ(y, value);
      }
    }
  }
  std::vector<float> x(64, 1.0f);
  x[7] = NAN;
  ASSERT_TRUE(std::isnan(run(layer, x, 1, false)[0]));
}

TEST_P(WeightOnly, ActivatesTheSum) {
  Random random(4);
  Layer layer(17, 40, 8, 4, false, random);
  const ActivationSpec silu{numerics::Activation::kSilu, {}, 1.0f, 1.0f};
  for (const int64_t rows : {1, 33}) {
    const auto x = inputs(rows * 40, random);
    const auto plain = run(layer, x, rows, true);
    const auto activated = run(layer, x, rows, true, silu);
    for (int64_t i = 0; i < rows * 17; ++i) ASSERT_EQ(activated[i], numerics::activate(plain[i], silu));
  }
}

std::vector<Isa> isas_beside_the_reference() {
  std::vector<Isa> isas = available_isas();
  isas.erase(isas.begin());
  return isas;
}

GTEST_ALLOW_UNINSTANTIATED_PARAMETERIZED_TEST(WeightOnly);  // a processor that runs only the reference
INSTANTIATE_TEST_SUITE_P(Isa, WeightOnly, ::testing::ValuesIn(isas_beside_the_reference()), test::isa_test_name);

}  // namespace
}  // namespace torchquant::kernels
