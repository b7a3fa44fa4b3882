// The table of integer kernels against plain loops: any split of the work gives the same bytes and writes nothing else.
// (The results themselves are tested against NumPy in tests/python/test_quantized_ops.py; this file also runs under the
// sanitizers.)
#include "kernels/quantized_kernels.h"

#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "support/rng.h"

namespace torchquant::kernels {
namespace {

using test::Random;

constexpr uint8_t kUntouched = 0xA5;

std::vector<uint8_t> random_bytes(int64_t n, Random& random) {
  std::vector<uint8_t> bytes(n);
  for (uint8_t& byte : bytes) byte = static_cast<uint8_t>(random.integer(0, 255));
  return bytes;
}

std::vector<int8_t> random_weight(int64_t n, Random& random) {
  std::vector<int8_t> weight(n);
  for (int8_t& w : weight) w = static_cast<int8_t>(random.integer(-127, 127));
  return weight;
}

// Per-channel scaling that spreads the outputs over [0, 255].
struct Scaling {
  Scaling(int64_t channels, Random& random) : multiplier(channels), bias(channels) {
    for (float& m : multiplier) m = random.uniform(-2e-3f, 2e-3f);
    for (float& b : bias) b = random.uniform(-40.0f, 40.0f);
  }
  Epilogue epilogue() const {
    return {
        multiplier.data(), bias.data(), {}, {ElementType::kUInt8, 128.0f, {0.0f, 255.0f}, numerics::no_activation()}};
  }
  uint8_t code(int32_t acc, int64_t channel) const {
    const float v = numerics::scale_accumulator(acc, multiplier[channel], bias[channel]);
    return static_cast<uint8_t>(numerics::output_code(v, 128.0f, {0.0f, 255.0f}));
  }
  std::vector<float> multiplier;
  std::vector<float> bias;
};

// The first `edges` that lie inside [0, n], as consecutive ranges that cover it.
std::vector<IndexRange> split(int64_t n, std::vector<int64_t> edges) {
  std::vector<IndexRange> ranges;
  int64_t begin = 0;
  edges.push_back(n);
  for (int64_t edge : edges) {
    if (edge <= begin || edge > n) continue;
    ranges.push_back({begin, edge});
    begin = edge;
  }
  return ranges;
}

TEST(QuantizedLinear, EverySplitGivesTheBytesOfPlainLoops) {
  Random random(1);
  for (const int64_t rows : {1, 3, 8, 21}) {
    for (const int64_t channels : {1, 5, 300}) {
      for (const int64_t depth : {1, 31, 64}) {
        const auto x = random_bytes(rows * depth, random);
        const auto weight = random_weight(channels * depth, random);
        const Scaling scaling(channels, random);
        std::vector<uint8_t> expected(rows * channels);
        for (int64_t r = 0; r < rows; ++r) {
          for (int64_t c = 0; c < channels; ++c) {
            int32_t acc = 0;
            for (int64_t k = 0; k < depth; ++k) acc += (x[r * depth + k] - 100) * weight[c * depth + k];
            expected[r * channels + c] = scaling.code(acc, c);
          }
        }
        std::vector<uint8_t> out(rows * channels, kUntouched);
        const LinearArgs args{x.data(), ElementType::kUInt8, 100,       depth, weight.data(),
                              channels, scaling.epilogue(),  out.data()};
        for (const IndexRange row_range : split(rows, {2, 13})) {
          for (const IndexRange channel_range : split(channels, {1, 7, 258})) {
            quantized_kernels().linear(args, row_range, channel_range);
          }
        }
        EXPECT_EQ(out, expected) << "rows " << rows << ", channels " << channels << ", depth " << depth;
      }
    }
  }
}

TEST(QuantizedLinear, WritesOnlyItsPart) {
  Random random(2);
  const auto x = random_bytes(6 * 4, random);
  const auto weight = random_weight(5 * 4, random);
  const Scaling scaling(5, random);
  std::vector<uint8_t> out(6 * 5, kUntouched);
  const LinearArgs args{x.data(), ElementType::kUInt8, 0, 4, weight.data(), 5, scaling.epilogue(), out.data()};
  quantized_kernels().linear(args, {2, 4}, {1, 3});
  for (int64_t i = 0; i < 30; ++i) {
    const bool inside = i / 5 >= 2 && i / 5 < 4 && i % 5 >= 1 && i % 5 < 3;
    if (!inside) {
      EXPECT_EQ(out[i], kUntouched) << "element " << i;
    }
  }
}

ConvAxis random_axis(bool transposed, Random& random) {
  ConvAxis axis{};
  axis.kernel = random.integer(1, 4);
  axis.stride = random.integer(1, 3);
  axis.padding = random.integer(0, 3);
  axis.dilation = random.integer(1, 2);
  const int64_t reach = axis.dilation * (axis.kernel - 1);
  do {
    axis.in_size = random.integer(1, 9);
    axis.out_size = transposed ? (axis.in_size - 1) * axis.stride - 2 * axis.padding + reach + 1
                               : (axis.in_size + 2 * axis.padding - reach - 1 + axis.stride) / axis.stride;
  } while (axis.out_size < 1 || (!transposed && axis.in_size + 2 * axis.padding <= reach));
  return axis;
}

// Adds every input's contribution where it lands (transposed) or comes from (forward): scatter and gather in one loop.
std::vector<int32_t> plain_conv(const ConvGeometry& g, const std::vector<uint8_t>& x, int32_t zero_point,
                                const std::vector<int8_t>& weight) {
  const auto& [h, w] = std::pair{g.height, g.width};
  const int64_t group_in = g.in_channels / g.groups;
  const int64_t group_out = g.out_channels / g.groups;
  std::vector<int32_t> acc(g.batch * h.out_size * w.out_size * g.out_channels, 0);
  // "from" walks the side that strides: the output of a forward convolution, the input of a transposed one.
  const int64_t from_h = g.transposed ? h.in_size : h.out_size;
  const int64_t from_w = g.transposed ? w.in_size : w.out_size;
  const int64_t to_h = g.transposed ? h.out_size : h.in_size;
  const int64_t to_w = g.transposed ? w.out_size : w.in_size;
  for (int64_t n = 0; n < g.batch; ++n) {
    for (int64_t fy = 0; fy < from_h; ++fy) {
      for (int64_t fx = 0; fx < from_w; ++fx) {
        for (int64_t ky = 0; ky < h.kernel; ++ky) {
          for (int64_t kx = 0; kx < w.kernel; ++kx) {
            const int64_t ty = fy * h.stride - h.padding + ky * h.dilation;
            const int64_t tx = fx * w.stride - w.padding + kx * w.dilation;
            if (ty < 0 || ty >= to_h || tx < 0 || tx >= to_w) continue;
            const int64_t in_pixel =
                g.transposed ? (n * h.in_size + fy) * w.in_size + fx : (n * h.in_size + ty) * w.in_size + tx;
            const int64_t out_pixel =
                g.transposed ? (n * h.out_size + ty) * w.out_size + tx : (n * h.out_size + fy) * w.out_size + fx;
            for (int64_t o = 0; o < g.out_channels; ++o) {
              for (int64_t i = 0; i < group_in; ++i) {
                const int64_t in_channel = o / group_out * group_in + i;
                const int64_t row = g.transposed ? in_channel : o;
                const int64_t column = g.transposed ? o % group_out : i;
                const int64_t columns = g.transposed ? group_out : group_in;
                acc[out_pixel * g.out_channels + o] +=
                    (x[in_pixel * g.in_channels + in_channel] - zero_point) *
                    weight[((row * columns + column) * h.kernel + ky) * w.kernel + kx];
              }
            }
          }
        }
      }
    }
  }
  return acc;
}

std::string describe(const ConvGeometry& g) {
  const auto axis = [](const ConvAxis& a) {
    return "in " + std::to_string(a.in_size) + " kernel " + std::to_string(a.kernel) + " stride " +
           std::to_string(a.stride) + " padding " + std::to_string(a.padding) + " dilation " +
           std::to_string(a.dilation);
  };
  return std::string(g.transposed ? "transposed, " : "") + "channels " + std::to_string(g.in_channels) + " -> " +
         std::to_string(g.out_channels) + ", groups " + std::to_string(g.groups) + ", height " + axis(g.height) +
         ", width " + axis(g.width);
}

TEST(QuantizedConv, RandomGeometriesGiveTheBytesOfPlainLoops) {
  Random random(3);
  for (int round = 0; round < 400; ++round) {
    const bool transposed = random.integer(0, 1) == 1;
    const int64_t groups = random.integer(1, 4);
    const bool depthwise = random.integer(0, 2) == 0;
    ConvGeometry g{random.integer(1, 2),
                   groups * (depthwise ? 1 : random.integer(1, 5)),
                   groups * (depthwise ? 1 : random.integer(1, 6)),
                   groups,
                   transposed,
                   random_axis(transposed, random),
                   random_axis(transposed, random)};
    const int64_t taps = g.height.kernel * g.width.kernel;
    const int64_t columns = (transposed ? g.out_channels : g.in_channels) / groups;
    const auto x = random_bytes(g.batch * g.height.in_size * g.width.in_size * g.in_channels, random);
    const auto weight = random_weight((transposed ? g.in_channels : g.out_channels) * columns * taps, random);
    const Scaling scaling(g.out_channels, random);

    std::vector<int8_t> arranged(weight.size());
    const ConvWeight view{weight.data(), {columns * taps, taps, g.width.kernel, 1}};
    for (const IndexRange channels : split(g.out_channels, {1, 3})) {
      quantized_kernels().arrange_conv_weight(g, view, channels, arranged.data());
    }
    const int64_t pixels = g.batch * g.height.out_size * g.width.out_size;
    std::vector<uint8_t> out(pixels * g.out_channels, kUntouched);
    const ImageLayout in_image = dense_image(g.height.in_size, g.width.in_size, g.in_channels);
    const ImageLayout out_image = dense_image(g.height.out_size, g.width.out_size, g.out_channels);
    const ConvArgs args{g,  in_image,        out_image,          out_image, x.data(), ElementType::kUInt8,
                        77, arranged.data(), scaling.epilogue(), out.data()};
    for (const IndexRange range : split(pixels, {1, 10, 31})) quantized_kernels().conv(args, range);

    const auto acc = plain_conv(g, x, 77, weight);
    std::vector<uint8_t> expected(out.size());
    for (size_t i = 0; i < acc.size(); ++i)
      expected[i] = scaling.code(acc[i], static_cast<int64_t>(i) % g.out_channels);
    ASSERT_EQ(out, expected) << "round " << round << ": " << describe(g);
  }
}

TEST(QuantizedLookup, FlipsTheSignBitOfSignedCodes) {
  std::vector<uint8_t> table(256);
  for (int i = 0; i < 256; ++i) table[i] = static_cast<uint8_t>(255 - i);
  const int8_t x[] = {-128, -1, 0, 127};
  uint8_t out[4];
  quantized_kernels().lookup({x, ElementType::kInt8, table.data(), 1, out}, {0, 4});
  EXPECT_EQ(std::vector<uint8_t>(out, out + 4), (std::vector<uint8_t>{255, 128, 127, 0}));
}

TEST(QuantizedKernels, NameTheirInstructionSet) {
  for (const Isa isa : available_isas()) EXPECT_STREQ(quantized_kernels(isa).name, isa_name(isa));
  EXPECT_EQ(&quantized_kernels(), &quantized_kernels(selected_isa()));
}

}  // namespace
}  // namespace torchquant::kernels
