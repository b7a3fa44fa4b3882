// Integer convolutions of csrc/kernels/cuda/integer_conv*.cu against the reference, bit by bit: every kind, padding and
// strides, grouped and depthwise; and where their numbers lie.
#include <gtest/gtest.h>

#include <tuple>

#include "kernels/cuda/conv_layout.h"
#include "support/cuda_conv_case.h"

namespace torchquant::kernels {
namespace {

using test::ConvTile;
using test::CudaLayer;
using test::expect_agreement;
using test::Random;

ConvAxisSpec axis(int64_t kernel, int64_t stride = 1, int64_t padding = 0, int64_t dilation = 1, int64_t extra = 0) {
  return {kernel, stride, padding, dilation, extra};
}

CudaLayer image_layer(int64_t in_channels, int64_t out_channels, ConvAxisSpec both, int64_t size) {
  CudaLayer layer{{in_channels, out_channels, 1, false, both, both}};
  layer.batch = 2;
  layer.height = size;
  layer.width = size + 1;
  return layer;
}

std::pair<ConvAxisSpec, int64_t> random_axis(bool transposed, Random& random) {
  for (;;) {
    ConvAxisSpec drawn = axis(random.integer(1, 4), random.integer(1, 3), random.integer(0, 3), random.integer(1, 2));
    if (transposed) drawn.output_padding = random.integer(0, std::max(drawn.stride, drawn.dilation) - 1);
    const int64_t size = random.integer(1, 7);
    if (conv_output_size(drawn, transposed, size) >= 1) return {drawn, size};
  }
}

void randomize_image(CudaLayer& layer, Random& random) {
  layer.spec.transposed = random.integer(0, 1) == 1;
  layer.batch = random.integer(1, 2);
  std::tie(layer.spec.height, layer.height) = random_axis(layer.spec.transposed, random);
  std::tie(layer.spec.width, layer.width) = random_axis(layer.spec.transposed, random);
  layer.x_type = random.integer(0, 1) == 1 ? ElementType::kInt8 : ElementType::kUInt8;
  layer.x_zero_point = static_cast<int32_t>(random.integer(0, 100));
  layer.residual = random.integer(0, 1) == 1;
}

TEST(CudaConvLayout, TapsReadWhatTheDefinitionSays) {
  const ConvAxisSpec forward = axis(3, 2, 1, 2);
  const cuda::TapAxis f = cuda::tap_axis(forward, false, 7, conv_output_size(forward, false, 7));
  for (int32_t out = 0; out < f.out_size; ++out) {
    for (int32_t tap = 0; tap < 3; ++tap) {
      const int32_t in = out * 2 - 1 + tap * 2;
      EXPECT_EQ(f.position(f.start(out), tap), in >= 0 && in < 7 ? in : -1);
    }
  }
  // A transposed one scatters: input i adds to output i * stride - padding + tap * dilation.
  const ConvAxisSpec transposed = axis(3, 3, 2, 2, 1);
  const cuda::TapAxis t = cuda::tap_axis(transposed, true, 5, conv_output_size(transposed, true, 5));
  for (int32_t out = 0; out < t.out_size; ++out) {
    for (int32_t tap = 0; tap < 3; ++tap) {
      int32_t expected = -1;
      for (int32_t in = 0; in < 5; ++in) {
        if (in * 3 - 2 + tap * 2 == out) expected = in;
      }
      EXPECT_EQ(t.position(t.start(out), tap), expected) << out << ", " << tap;
    }
  }
}

TEST(CudaConvLayout, APixelBehindTheLastReadsOnlyPadding) {
  for (const bool transposed : {false, true}) {
    const cuda::TapAxis a = cuda::tap_axis(axis(3, 2, 1), transposed, 9, 4);
    for (int32_t tap = 0; tap < 3; ++tap) EXPECT_EQ(a.position(cuda::ConvShape::nowhere().y, tap), -1);
  }
}

TEST(CudaConvLayout, ACursorWalksChannelsThenColumnsThenRows) {
  cuda::ConvShape shape{};
  shape.group_in = 5;
  shape.height.kernel = 2;
  shape.width.kernel = 3;
  for (const int32_t step : {1, 3, 5, 7, 16}) {
    cuda::DepthCursor cursor;
    for (int32_t k = 0; k < shape.depth(); k += step) {
      EXPECT_EQ((cursor.ky * 3 + cursor.kx) * 5 + cursor.channel, k);
      EXPECT_LT(cursor.channel, 5);
      EXPECT_LT(cursor.kx, 3);
      cursor.advance(shape, step);
    }
    EXPECT_GE(cursor.ky, 2);
  }
}

TEST(CudaConvLayout, PackedRowsAreWholeChunksAndSumsLieBehindThem) {
  const auto grouped = cuda::packed_conv_layout({12, 20, 4, false, axis(3), axis(3)});
  EXPECT_EQ(grouped.slots, 32);  // 9 taps of 3 channels
  EXPECT_EQ(grouped.index(19, 26), 19 * 32 + 26);
  EXPECT_EQ(grouped.tap(26), 8);
  EXPECT_EQ(grouped.tap(27), -1);
  EXPECT_EQ(grouped.sums_offset(), 20 * 32);
  EXPECT_EQ(grouped.bytes(), 20 * 32 + 20 * 4);
}

TEST(CudaConvLayout, DepthwiseTapsStandInQuadsOfAKernelRow) {
  const auto layout = cuda::packed_conv_layout({18, 18, 18, false, axis(2), axis(5)});
  EXPECT_EQ(layout.rows(), 20);
  EXPECT_EQ(layout.slots, 2 * 8);
  EXPECT_EQ(layout.tap(4), 4);
  EXPECT_EQ(layout.tap(5), -1);
  EXPECT_EQ(layout.tap(8), 5);
  EXPECT_EQ(layout.index(3, 0), 12);
  EXPECT_EQ(layout.index(3, 9), 2 * 80 + 12 + 1);
  EXPECT_EQ(layout.bytes(), 20 * 16 + 20 * 4);
}

TEST(CudaConv, ReceiptsNameTheKernel) {
  EXPECT_STREQ(cuda::integer_conv_kernel({64, 64}), "cuda_mma_int8");
  EXPECT_STREQ(cuda::integer_conv_kernel({64, 64, 64}), "cuda_depthwise");
  EXPECT_STREQ(cuda::integer_conv_kernel({64, 64, 16}), "cuda_direct");
}

TEST(CudaConv, PaddingBordersOnEveryTile) {
  for (const ConvTile tile : {ConvTile::kLarge, ConvTile::kMedium, ConvTile::kSmall}) {
    for (const int64_t padding : {0, 1, 2}) {
      CudaLayer layer = image_layer(16, 24, axis(3, 1, padding), 6);
      layer.tile = tile;
      layer.residual = true;
      expect_agreement(layer);
      layer.x_type = ElementType::kInt8;
      layer.x_zero_point = -5;
      expect_agreement(layer);
    }
  }
}

TEST(CudaConv, StridesAndDilations) {
  for (const auto& both : {axis(1, 2), axis(3, 2, 1), axis(3, 1, 2, 2), axis(5, 3, 2), axis(2, 2, 1, 3)}) {
    expect_agreement(image_layer(32, 40, both, 9));
  }
}

TEST(CudaConv, ImagesOfAnyChannels) {
  for (const int64_t channels : {1, 3, 17, 24}) expect_agreement(image_layer(channels, 20, axis(3, 2, 1), 8));
  expect_agreement(image_layer(3, 64, axis(7, 2, 3), 11));  // the first layer of a residual network
}

TEST(CudaConv, OneDimension) {
  CudaLayer layer{{32, 20, 1, false, {}, axis(5, 2, 3)}};
  layer.batch = 3;
  layer.width = 29;
  expect_agreement(layer);
}

TEST(CudaConv, GroupsOfWholeChunksAndOfFewChannels) {
  for (const int64_t group_in : {16, 32, 5}) {
    for (const int64_t group_out : {16, 40, 4, 1}) {
      CudaLayer layer = image_layer(3 * group_in, 3 * group_out, axis(3, 1, 1), 5);
      layer.spec.groups = 3;
      layer.residual = true;
      expect_agreement(layer);
      layer.misaligned = 1;
      expect_agreement(layer);
    }
  }
}

TEST(CudaConv, DepthwiseWithStrides) {
  for (const int64_t channels : {1, 3, 4, 30, 64, 1030}) {
    for (const int64_t stride : {1, 2}) {
      CudaLayer layer = image_layer(channels, channels, axis(3, stride, 1), channels > 1000 ? 3 : 9);
      layer.spec.groups = channels;
      layer.residual = true;
      layer.output.activation = {numerics::Activation::kClamp, {0.0f, 90.0f}, 1.0f, 1.0f};
      expect_agreement(layer);
      layer.x_type = ElementType::kInt8;
      layer.x_zero_point = -3;
      layer.residual = false;
      layer.misaligned = 2;
      expect_agreement(layer);
    }
  }
}

TEST(CudaConv, DepthwiseKernelsOfEveryWidth) {
  for (const int64_t width : {1, 2, 4, 5, 8, 9}) {
    CudaLayer layer{{12, 12, 12, false, axis(2), axis(width, 1, 3)}};
    layer.height = 4;
    layer.width = 10;
    expect_agreement(layer);
  }
}

TEST(CudaConv, Transposed) {
  for (const int64_t in_channels : {16, 10}) {
    for (const auto& both : {axis(2, 2), axis(4, 2, 1), axis(3, 3, 2, 2, 1)}) {
      CudaLayer layer = image_layer(in_channels, 20, both, 5);
      layer.spec.transposed = true;
      expect_agreement(layer);
    }
  }
}

TEST(CudaConv, PackedFourBitWeightsOfEveryKind) {
  for (const bool transposed : {false, true}) {
    for (const int64_t groups : {1, 2, 32}) {
      CudaLayer layer = image_layer(32, 32, axis(3, 2, 1), 5);
      layer.spec.transposed = transposed;
      layer.spec.groups = groups;
      layer.weight_bits = 4;
      expect_agreement(layer);
    }
  }
}

TEST(CudaConv, RandomGeometries) {
  Random random(7);
  for (int round = 0; round < 60; ++round) {
    const int64_t groups = random.integer(1, 3);
    const int64_t group_in = random.integer(0, 1) == 0 ? 16 * random.integer(1, 2) : random.integer(1, 20);
    CudaLayer layer{{groups * group_in, groups * random.integer(1, 40), groups}};
    randomize_image(layer, random);
    layer.tile = static_cast<ConvTile>(random.integer(0, 3));
    expect_agreement(layer, static_cast<unsigned>(round));
  }
}

TEST(CudaConv, RandomDepthwiseGeometries) {
  Random random(8);
  for (int round = 0; round < 60; ++round) {
    const int64_t channels = random.integer(1, 40);
    CudaLayer layer{{channels, channels, channels}};
    randomize_image(layer, random);
    expect_agreement(layer, static_cast<unsigned>(round));
  }
}

}  // namespace
}  // namespace torchquant::kernels
