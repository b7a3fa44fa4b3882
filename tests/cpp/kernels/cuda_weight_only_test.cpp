// Weight-only linear layers on CUDA (run by the emulation) against fp64, within the bound that linear_weight_only.h
// states, at depths, groups, channels and rows around blocks and tiles; and the packed layout by itself.
#include <gtest/gtest.h>

#include <array>
#include <cmath>
#include <cstring>
#include <string>
#include <vector>

#include "kernels/cuda/linear_weight_only.h"
#include "numerics/int4.h"
#include "support/halves.h"
#include "support/rng.h"

namespace torchquant::kernels {
namespace {

using test::Random;

TEST(CudaWeightOnlyLayout, PlacesEveryCodeOfABlockOnce) {
  for (const int bits : {4, 8}) {
    std::vector<int> seen(cuda::kBlockCodes);
    for (int i = 0; i < static_cast<int>(cuda::kBlockCodes); ++i) {
      const cuda::BlockPlace place = cuda::place_of_code(bits, i);
      ++seen[static_cast<size_t>(place.channel * cuda::kBlockDepth + place.k)];
    }
    EXPECT_EQ(seen, std::vector<int>(cuda::kBlockCodes, 1));
  }
}

// What a lane loads as 16 bytes of a 16-bit input is its part of a half block's two products.
TEST(CudaWeightOnlyLayout, ALanesCodesMeetNeighboursOfTheInput) {
  for (int lane = 0; lane < 32; ++lane) {
    for (int product = 0; product < 4; ++product) {
      for (int reg = 0; reg < 4; ++reg) {
        const cuda::BlockPlace place = cuda::block_place(lane, product, reg, 0);
        EXPECT_EQ(place.k, 32 * (product / 2) + 8 * (lane % 4) + 4 * (product % 2) + 2 * (reg / 2));
        EXPECT_EQ(place.channel, lane / 4 + 8 * (reg % 2));
      }
    }
  }
}

struct Layer {
  Layer(int64_t channels, int64_t depth, int64_t group_size, int32_t bits, bool zero_points, Random& random)
      : shape{channels, depth, group_size, bits, bits == 4 ? -8 : -127, zero_points}, codes(channels * depth) {
    const int64_t lowest = bits == 4 ? -8 : -128, highest = bits == 4 ? 7 : 127;
    for (int8_t& code : codes) code = static_cast<int8_t>(random.integer(lowest, highest));
    for (int64_t i = 0; i < channels * (depth / group_size); ++i) {
      scale.push_back(random.uniform(0.001f, 0.1f));
      if (zero_points) zero_point.push_back(static_cast<float>(random.integer(lowest, highest)));
    }
    for (int64_t i = 0; i < channels; ++i) bias.push_back(random.uniform(-1.0f, 1.0f));
    const int64_t row_bytes = bits == 8 ? depth : numerics::int4_bytes(depth);
    stored.resize(channels * row_bytes);
    for (int64_t c = 0; c < channels; ++c) {
      if (bits == 8) {
        std::memcpy(&stored[c * row_bytes], &codes[c * depth], depth);
      } else {
        numerics::pack_int4(&codes[c * depth], depth, shape.quant_min, &stored[c * row_bytes]);
      }
    }
  }

  double weight(int64_t channel, int64_t k) const {
    const int64_t group = channel * (shape.depth / shape.group_size) + k / shape.group_size;
    const double zero = shape.has_zero_points ? zero_point[group] : 0.0;
    return (codes[channel * shape.depth + k] - zero) * static_cast<double>(scale[group]);
  }

  cuda::StoredWeightOnly as_stored() const {
    return {stored.data(), scale.data(), shape.has_zero_points ? zero_point.data() : nullptr};
  }

  WeightOnlyShape shape;
  std::vector<int8_t> codes;
  std::vector<uint8_t> stored;
  std::vector<float> scale, zero_point, bias;
};

std::vector<float> run(const Layer& layer, const std::vector<unsigned char>& x, FloatType type, int64_t rows,
                       ActivationSpec activation = numerics::no_activation()) {
  const int64_t outputs = rows * layer.shape.out_channels;
  auto out = test::narrowed(std::vector<float>(outputs, -12345.0f), type);
  const cuda::WeightOnlyArgs args{x.data(), type, rows, layer.shape, layer.bias.data(), activation, out.data()};
  if (cuda::takes_packed(layer.shape)) {
    std::vector<unsigned char> packed(cuda::PackedWeightLayout(layer.shape).bytes);
    EXPECT_EQ(cuda::pack_weight_only(layer.shape, layer.as_stored(), packed.data(), nullptr), cudaSuccess);
    EXPECT_EQ(cuda::linear_weight_only(args, packed.data(), nullptr), cudaSuccess);
  } else {
    EXPECT_EQ(cuda::linear_weight_only_plain(args, layer.as_stored(), nullptr), cudaSuccess);
  }
  return test::widened(out, type);
}

// Half a unit in the last place of a result of this size.
double narrowing(FloatType type, double value) {
  switch (type) {
    case FloatType::kFloat32:
      return 0.0;
    case FloatType::kBFloat16:
      return std::ldexp(std::fabs(value), -8);
    case FloatType::kFloat16:
      return std::ldexp(std::fabs(value), -11) + 0x1p-25;
  }
  return 0.0;
}

void expect_within_bound(const Layer& layer, const std::vector<float>& values, FloatType type, int64_t rows) {
  const int64_t depth = layer.shape.depth, channels = layer.shape.out_channels;
  const auto bytes = test::narrowed(values, type);
  const auto x = test::widened(bytes, type);
  const auto out = run(layer, bytes, type, rows);
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t c = 0; c < channels; ++c) {
      double exact = layer.bias[c];
      double magnitude = std::fabs(exact);
      for (int64_t k = 0; k < depth; ++k) {
        const double term = static_cast<double>(x[r * depth + k]) * layer.weight(c, k);
        exact += term;
        magnitude += std::fabs(term);
      }
      const double bound = (static_cast<double>(depth) / 8 + 64) * std::ldexp(magnitude, -24) + narrowing(type, exact);
      ASSERT_LE(std::fabs(out[r * channels + c] - exact), bound) << "row " << r << ", channel " << c;
    }
  }
}

void expect_within_bound(int64_t rows, int64_t channels, int64_t depth, int64_t group_size, FloatType type,
                         Random& random) {
  for (const int32_t bits : {4, 8}) {
    const bool zero_points = random.integer(0, 1) == 1;
    SCOPED_TRACE(std::to_string(bits) + " bits, " + std::to_string(rows) + " rows, depth " + std::to_string(depth) +
                 ", groups of " + std::to_string(group_size) + ", " + std::to_string(channels) + " channels, type " +
                 std::to_string(static_cast<int>(type)) + (zero_points ? ", zero points" : ""));
    const Layer layer(channels, depth, group_size, bits, zero_points, random);
    std::vector<float> x(rows * depth);
    for (float& v : x) v = random.bell(1.0f);
    if (x.size() > 3) x[x.size() / 3] = 1000.0f;  // an outlier
    ASSERT_NO_FATAL_FAILURE(expect_within_bound(layer, x, type, rows));
  }
}

constexpr FloatType kTypes[] = {FloatType::kFloat32, FloatType::kBFloat16, FloatType::kFloat16};

TEST(CudaWeightOnly, FewRowsAroundTheEdgesOfBlocks) {
  Random random(1);
  for (const FloatType type : kTypes) {
    for (const int64_t rows : {1, 2, 8, 9, 32}) {
      for (const auto& [depth, group] : std::vector<std::array<int64_t, 2>>{
               {1, 1}, {31, 31}, {64, 64}, {65, 65}, {96, 32}, {192, 96}, {320, 64}, {1032, 1032}}) {
        const int64_t channels = std::array<int64_t, 4>{1, 16, 17, 40}[static_cast<size_t>(random.integer(0, 3))];
        ASSERT_NO_FATAL_FAILURE(expect_within_bound(rows, channels, depth, group, type, random));
      }
    }
  }
}

// More than two turns of eight warps and all that they have in flight.
TEST(CudaWeightOnly, DeepLayers) {
  Random random(2);
  expect_within_bound(1, 16, 64 * 80, 128, FloatType::kBFloat16, random);
}

TEST(CudaWeightOnly, ManyRowsAroundTheEdgesOfTiles) {
  Random random(3);
  for (const FloatType type : kTypes) {
    for (const auto& [rows, channels, depth, group] : std::vector<std::array<int64_t, 4>>{
             {33, 20, 64, 32}, {64, 128, 72, 72}, {65, 129, 416, 32}, {70, 16, 96, 96}, {40, 5, 33, 33}}) {
      ASSERT_NO_FATAL_FAILURE(expect_within_bound(rows, channels, depth, group, type, random));
    }
  }
}

TEST(CudaWeightOnly, GroupsWithoutAPackedForm) {
  Random random(4);
  for (const FloatType type : kTypes) {
    ASSERT_FALSE(cuda::takes_packed({5, 130, 13, 8, -127, false}));
    ASSERT_NO_FATAL_FAILURE(expect_within_bound(3, 5, 130, 13, type, random));
  }
}

TEST(CudaWeightOnly, MoreChannelsThanAGridHoldsAreForThePlainKernel) {
  constexpr int64_t kMost = int64_t{65535} * 16;
  EXPECT_TRUE(cuda::takes_packed({kMost, 64, 64, 8, -127, false}));
  EXPECT_FALSE(cuda::takes_packed({kMost + 1, 64, 64, 8, -127, false}));
}

// fp32 inputs keep all of their bits: products with single codes are exact.
TEST(CudaWeightOnly, OneInputTimesACodeIsExact) {
  Random random(5);
  for (const int32_t bits : {4, 8}) {
    for (const FloatType type : kTypes) {
      Layer layer(16, 64, 64, bits, false, random);
      layer.scale.assign(layer.scale.size(), 0.5f);
      layer.bias.assign(layer.bias.size(), 0.0f);
      std::vector<float> values(64);
      const float value = type == FloatType::kFloat32 ? 1.2345678f : 1.25f;
      values[37] = value;
      const auto out = run(layer, test::narrowed(values, type), type, 1);
      for (int64_t c = 0; c < 16; ++c) {
        const double exact = static_cast<double>(value) * layer.codes[c * 64 + 37] * 0.5;
        ASSERT_NEAR(out[c], exact, std::fabs(exact) * 0x1p-22 + narrowing(type, exact));
      }
    }
  }
}

TEST(CudaWeightOnly, KeepsInfinitiesAndNan) {
  Random random(6);
  Layer layer(16, 64, 64, 4, false, random);
  layer.codes.assign(layer.codes.size(), 1);
  layer.stored.assign(layer.stored.size(), 0x99);
  for (const FloatType type : kTypes) {
    for (const float value : {INFINITY, -INFINITY, NAN}) {
      std::vector<float> values(64);
      values[40] = value;
      for (const float y : run(layer, test::narrowed(values, type), type, 1)) {
        ASSERT_TRUE(std::isnan(value) ? std::isnan(y) : y == value) << value << " gave " << y;
      }
    }
  }
}

TEST(CudaWeightOnly, ActivatesTheSum) {
  Random random(7);
  const Layer layer(17, 64, 32, 4, true, random);
  const ActivationSpec silu{numerics::Activation::kSilu, {}, 1.0f, 1.0f};
  for (const int64_t rows : {1, 34}) {
    std::vector<float> values(rows * 64);
    for (float& v : values) v = random.bell(1.0f);
    const auto x = test::narrowed(values, FloatType::kFloat32);
    const auto plain = run(layer, x, FloatType::kFloat32, rows);
    const auto activated = run(layer, x, FloatType::kFloat32, rows, silu);
    for (size_t i = 0; i < plain.size(); ++i) ASSERT_EQ(activated[i], numerics::activate(plain[i], silu));
  }
}

}  // namespace
}  // namespace torchquant::kernels
