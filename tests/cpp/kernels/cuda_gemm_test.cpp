// Integer matrix products of csrc/kernels/cuda/integer_conv*.cu against the reference, bit by bit: linear layers,
// around the edges of every tile, and everything that the epilogue does.
#include <gtest/gtest.h>

#include <cstring>
#include <limits>
#include <set>

#include "kernels/cuda/conv_layout.h"
#include "support/cuda_conv_case.h"

namespace torchquant::kernels {
namespace {

using numerics::Activation;
using numerics::ActivationSpec;
using test::ConvTile;
using test::CudaConvCase;
using test::CudaLayer;
using test::expect_agreement;
using test::linear_layer;

constexpr ConvTile kTiles[] = {ConvTile::kLarge, ConvTile::kMedium, ConvTile::kSmall};

ActivationSpec clamp(float lo, float hi) { return {Activation::kClamp, {lo, hi}, 1.0f, 1.0f}; }

// A layer that the tensor-core kernel runs with whole chunks, edges in every direction.
CudaLayer edged_layer(ConvTile tile) {
  CudaLayer layer = linear_layer(70, 80, 72);
  layer.tile = tile;
  return layer;
}

template <int CHUNKS>
void expect_rows_in_different_banks() {
  for (int chunk = 0; chunk < CHUNKS; ++chunk) {
    for (int row = 0; row < 64; row += 8) {
      std::set<int> banks;
      for (int i = 0; i < 8; ++i) banks.insert(cuda::tile_offset<CHUNKS>(row + i, chunk) % 128);
      EXPECT_EQ(banks.size(), 8u) << CHUNKS << " chunks, chunk " << chunk << ", row " << row;
    }
  }
}

TEST(CudaTileLayout, EightRowsOfAChunkLieInDifferentBanks) {
  expect_rows_in_different_banks<4>();
  expect_rows_in_different_banks<8>();
  expect_rows_in_different_banks<16>();
}

TEST(CudaTileLayout, EveryChunkHasAPlaceOfItsOwnInItsRow) {
  std::set<int> places;
  for (int row = 0; row < 32; ++row) {
    for (int chunk = 0; chunk < 16; ++chunk) {
      const int offset = cuda::tile_offset<16>(row, chunk);
      EXPECT_EQ(offset / 256, row);
      places.insert(offset);
    }
  }
  EXPECT_EQ(places.size(), 32u * 16u);
}

TEST(CudaGemm, RowsAndChannelsAroundTheEdgesOfEveryTile) {
  for (const ConvTile tile : kTiles) {
    const int64_t rows = tile == ConvTile::kLarge ? 128 : tile == ConvTile::kMedium ? 64 : 16;
    const int64_t columns = tile == ConvTile::kLarge ? 128 : tile == ConvTile::kMedium ? 64 : 32;
    for (const int64_t r : {int64_t{1}, rows - 1, rows, rows + 1}) {
      for (const int64_t c : {int64_t{1}, columns - 1, columns, columns + 3}) {
        CudaLayer layer = linear_layer(r, 32, c);
        layer.tile = tile;
        layer.residual = true;
        expect_agreement(layer);
      }
    }
  }
}

TEST(CudaGemm, DepthsAroundTheEdgesOfStepsAndStages) {
  for (const ConvTile tile : kTiles) {
    const int64_t step = tile == ConvTile::kSmall ? 256 : 64;
    for (const int64_t depth : {int64_t{16}, step - 16, step, step + 16, 3 * step, 4 * step, 4 * step + 16, 5 * step}) {
      CudaLayer layer = linear_layer(17, depth, 24);
      layer.tile = tile;
      expect_agreement(layer);
    }
  }
}

TEST(CudaGemm, DepthsThatAreNotWholeChunks) {
  for (const int64_t depth : {1, 3, 15, 17, 63, 65, 100, 257}) expect_agreement(linear_layer(67, depth, 65));
}

TEST(CudaGemm, InputsThatAreNotAligned) {
  for (const int64_t misaligned : {1, 4, 8, 15}) {
    CudaLayer layer = edged_layer(ConvTile::kAuto);
    layer.misaligned = misaligned;
    layer.residual = true;
    expect_agreement(layer);
  }
}

TEST(CudaGemm, CodesOfEitherSignAndTheirZeroPoints) {
  for (const ConvTile tile : kTiles) {
    for (const int32_t zero_point : {-128, -3, 0, 127}) {
      CudaLayer layer = edged_layer(tile);
      layer.x_type = ElementType::kInt8;
      layer.x_zero_point = zero_point;
      expect_agreement(layer);
    }
    for (const int32_t zero_point : {0, 255}) {
      CudaLayer layer = edged_layer(tile);
      layer.x_zero_point = zero_point;
      expect_agreement(layer);
    }
  }
}

TEST(CudaGemm, ResidualsAndOutputsOfEveryType) {
  for (const ConvTile tile : kTiles) {
    for (const ElementType residual : {ElementType::kUInt8, ElementType::kInt8}) {
      for (const ElementType out : {ElementType::kUInt8, ElementType::kInt8, ElementType::kFloat32}) {
        for (const int64_t channels : {32, 36, 50}) {  // whole chunks, whole words, neither
          CudaLayer layer = linear_layer(18, 48, channels);
          layer.tile = tile;
          layer.residual = true;
          layer.residual_type = residual;
          layer.output = {out, -7.0f, {-128.0f, 127.0f}, numerics::no_activation()};
          if (out == ElementType::kUInt8) layer.output = {out, 5.0f, {1.0f, 250.0f}, numerics::no_activation()};
          expect_agreement(layer);
        }
      }
    }
  }
}

TEST(CudaGemm, EveryActivation) {
  for (int kind = 0; kind <= static_cast<int>(Activation::kTanh); ++kind) {
    const auto activation = static_cast<Activation>(kind);
    for (const ElementType out : {ElementType::kUInt8, ElementType::kFloat32}) {
      CudaLayer layer = edged_layer(ConvTile::kMedium);
      layer.residual = true;
      const float scale = out == ElementType::kFloat32 ? 1.0f : 0.043f;
      layer.output = {out, 100.0f, {0.0f, 255.0f}, {activation, {-20.0f, 90.0f}, scale, 1.0f / scale}};
      expect_agreement(layer);
    }
  }
}

TEST(CudaGemm, TiesRoundToEven) {
  CudaLayer layer = linear_layer(64, 16, 64);
  layer.whole_multiplier = true;
  layer.output = {ElementType::kInt8, 1.0f, {-128.0f, 127.0f}, clamp(-100.25f, 100.5f)};
  CudaConvCase numbers(layer, 1);
  numbers.set_weights(1);  // sums of 16 codes: many are odd, and near the middle of the range
  layer.x_zero_point = 128;
  expect_agreement(numbers, layer);
}

TEST(CudaGemm, Saturates) {
  CudaLayer layer = edged_layer(ConvTile::kLarge);
  layer.largest = 40.0f;
  expect_agreement(layer);
}

// The largest depth that the op allows, with the largest codes: sums of raw codes pass through 2^31.
TEST(CudaGemm, IsExactAtTheLargestDepth) {
  for (const ElementType type : {ElementType::kUInt8, ElementType::kInt8}) {
    const bool is_signed = type == ElementType::kInt8;
    for (const int8_t weight : {int8_t{127}, int8_t{-127}}) {
      CudaLayer layer = linear_layer(1, 66304, 8);
      layer.x_type = type;
      layer.x_zero_point = is_signed ? 127 : 255;
      layer.output.type = ElementType::kFloat32;
      CudaConvCase numbers(layer, 1);
      numbers.set_weights(weight);
      numbers.set_inputs(is_signed ? 0x80 : 0);
      expect_agreement(numbers, layer);
    }
  }
}

TEST(CudaGemm, PackedFourBitWeights) {
  for (const int64_t depth : {48, 49}) {
    CudaLayer layer = linear_layer(20, depth, 40);
    layer.weight_bits = 4;
    expect_agreement(layer);
  }
}

TEST(CudaGemm, NoRowsIsNothingToDo) {
  CudaLayer layer = linear_layer(0, 32, 32);
  EXPECT_TRUE(CudaConvCase(layer, 1).emulated().empty());
}

}  // namespace
}  // namespace torchquant::kernels
