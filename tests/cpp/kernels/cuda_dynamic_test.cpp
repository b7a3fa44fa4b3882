// Dynamic linear layers on CUDA (run by the emulation) against the CPU's row quantizer and plain integer sums, bit by
// bit.
#include <gtest/gtest.h>

#include <array>
#include <cmath>
#include <cstring>
#include <string>
#include <vector>

#include "kernels/cuda/linear_dynamic.h"
#include "kernels/quantize_rows.h"
#include "numerics/int4.h"
#include "support/halves.h"
#include "support/rng.h"

namespace torchquant::kernels {
namespace {

using test::Random;

struct Layer {
  Layer(int64_t channels_, int64_t depth_, Random& random)
      : channels(channels_), depth(depth_), stride((depth + 15) / 16 * 16), weight(channels * stride) {
    for (int64_t c = 0; c < channels; ++c) {
      for (int64_t k = 0; k < depth; ++k) weight[c * stride + k] = static_cast<int8_t>(random.integer(-128, 127));
      scale.push_back(random.uniform(0.001f, 0.1f));
      bias.push_back(random.uniform(-1.0f, 1.0f));
    }
  }
  int64_t channels, depth, stride;
  std::vector<int8_t> weight;
  std::vector<float> scale, bias;
};

// What the CPU op computes.
std::vector<float> expected(const Layer& layer, const std::vector<float>& x, bool biased,
                            const ActivationSpec& activation) {
  const int64_t rows = static_cast<int64_t>(x.size()) / layer.depth;
  std::vector<float> out;
  std::vector<uint8_t> codes(layer.depth);
  for (int64_t r = 0; r < rows; ++r) {
    const float row_scale = quantize_row(Isa::kReference)(&x[r * layer.depth], layer.depth, codes.data());
    for (int64_t c = 0; c < layer.channels; ++c) {
      int32_t sum = 0;
      for (int64_t k = 0; k < layer.depth; ++k) {
        sum += (codes[k] - kDynamicZeroPoint) * layer.weight[c * layer.stride + k];
      }
      const float v = numerics::scale_accumulator(sum, row_scale * layer.scale[c], biased ? layer.bias[c] : 0.0f);
      out.push_back(numerics::activate(v, activation));
    }
  }
  return out;
}

// `values` narrowed to the type, run, and compared with the CPU's results narrowed to it.
void agrees(const Layer& layer, const std::vector<float>& values, FloatType type, bool biased = true,
            ActivationSpec activation = numerics::no_activation()) {
  const int64_t rows = static_cast<int64_t>(values.size()) / layer.depth;
  const auto x = test::narrowed(values, type);
  const auto wanted = test::narrowed(expected(layer, test::widened(x, type), biased, activation), type);
  std::vector<unsigned char> out(wanted.size(), 0xA5);
  const size_t scratch_bytes = cuda::linear_dynamic_scratch_bytes(rows, layer.depth);
  std::vector<unsigned char> scratch(scratch_bytes, 0xA5);
  const cuda::LinearDynamicArgs args{x.data(),
                                     type,
                                     rows,
                                     layer.depth,
                                     layer.channels,
                                     layer.weight.data(),
                                     layer.stride,
                                     layer.scale.data(),
                                     biased ? layer.bias.data() : nullptr,
                                     activation,
                                     out.data()};
  ASSERT_EQ(cuda::linear_dynamic(args, scratch.data(), nullptr), cudaSuccess);
  const auto actual = test::widened(out, type);
  const auto result = test::widened(wanted, type);
  for (size_t i = 0; i < result.size(); ++i) {
    ASSERT_EQ(actual[i], result[i]) << "row " << i / static_cast<size_t>(layer.channels) << ", channel "
                                    << i % static_cast<size_t>(layer.channels);
  }
}

std::vector<float> random_rows(int64_t count, Random& random) {
  std::vector<float> x(count);
  for (float& v : x) v = random.bell(2.0f);
  return x;
}

TEST(CudaLinearDynamic, FewRowsAroundTheEdgesOfSteps) {
  Random random(1);
  for (const int64_t rows : {1, 2, 3, 4, 5, 8, 9, 16}) {
    for (const int64_t depth : {1, 3, 63, 64, 65, 640, 2049}) {
      for (const int64_t channels : {1, 8, 33}) {
        SCOPED_TRACE(std::to_string(rows) + " rows, depth " + std::to_string(depth) + ", " + std::to_string(channels) +
                     " channels");
        const Layer layer(channels, depth, random);
        const auto type = static_cast<FloatType>(random.integer(0, 2));
        ASSERT_NO_FATAL_FAILURE(agrees(layer, random_rows(rows * depth, random), type, random.integer(0, 1) == 1));
      }
    }
  }
}

TEST(CudaLinearDynamic, ManyRowsAroundTheEdgesOfTiles) {
  Random random(2);
  for (const auto& [rows, depth, channels] : std::vector<std::array<int64_t, 3>>{
           {17, 64, 64}, {63, 130, 65}, {64, 17, 7}, {65, 320, 129}, {130, 1, 3}, {17, 577, 200}}) {
    SCOPED_TRACE(std::to_string(rows) + " rows, depth " + std::to_string(depth) + ", " + std::to_string(channels) +
                 " channels");
    const Layer layer(channels, depth, random);
    ASSERT_NO_FATAL_FAILURE(agrees(layer, random_rows(rows * depth, random), static_cast<FloatType>(rows % 3)));
  }
}

TEST(CudaLinearDynamic, LargeTiles) {
  Random random(3);
  const Layer layer(128 * 131 + 5, 33, random);
  agrees(layer, random_rows(101 * 33, random), FloatType::kBFloat16);
}

// Too deep for shared memory: quantized by a kernel before.
TEST(CudaLinearDynamic, FewRowsThatAreVeryDeep) {
  Random random(4);
  const Layer layer(9, 8000, random);
  ASSERT_GT(cuda::linear_dynamic_scratch_bytes(16, 8000), 0u);
  agrees(layer, random_rows(16 * 8000, random), FloatType::kFloat16);
}

TEST(CudaLinearDynamic, SpecialRows) {
  Random random(5);
  const Layer layer(5, 70, random);
  for (const int64_t rows : {6, 70}) {
    auto x = random_rows(rows * 70, random);
    for (int64_t k = 0; k < 70; ++k) {
      x[k] = 0.0f;                                                  // scale 1
      x[70 + k] = k % 2 == 0 ? NAN : -INFINITY;                     // nothing finite
      x[140 + k] = k == 0 ? 127.0f : static_cast<float>(k) + 0.5f;  // ties
      x[210 + k] = 0x1p-149f * static_cast<float>(k);               // a scale too small to be one
    }
    x[5 * 70 + 3] = 1e30f;  // an outlier
    agrees(layer, x, FloatType::kFloat32);
  }
}

TEST(CudaLinearDynamic, Activations) {
  Random random(6);
  const Layer layer(20, 64, random);
  for (const auto kind : {numerics::Activation::kClamp, numerics::Activation::kGelu}) {
    for (const int64_t rows : {3, 20}) {
      agrees(layer, random_rows(rows * 64, random), FloatType::kFloat32, true, {kind, {-0.5f, 2.0f}, 1.0f, 1.0f});
    }
  }
}

TEST(CudaLinearDynamic, UnpacksWeights) {
  Random random(7);
  for (const int32_t bits : {4, 8}) {
    const int64_t channels = 5, depth = 21, stride = 32;
    std::vector<int8_t> codes(channels * depth), expected_codes(channels * stride), out(channels * stride, 77);
    std::vector<uint8_t> stored;
    for (int8_t& code : codes) code = static_cast<int8_t>(random.integer(-8, 7));
    for (int64_t c = 0; c < channels; ++c) {
      std::memcpy(&expected_codes[c * stride], &codes[c * depth], depth);
      stored.resize(stored.size() + (bits == 8 ? depth : numerics::int4_bytes(depth)));
      if (bits == 8) {
        std::memcpy(stored.data() + c * depth, &codes[c * depth], depth);
      } else {
        numerics::pack_int4(&codes[c * depth], depth, -8, stored.data() + c * numerics::int4_bytes(depth));
      }
    }
    ASSERT_EQ(cuda::unpack_weight({stored.data(), depth, bits, -8}, channels, stride, out.data(), nullptr),
              cudaSuccess);
    EXPECT_EQ(out, expected_codes);
  }
}

}  // namespace
}  // namespace torchquant::kernels
