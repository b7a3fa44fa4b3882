// The kernels of the AVX2 convolution engine. Codes and weights are widened to int16 and multiplied in pairs, which is
// exact for every operand; the byte multiply of AVX2 saturates. Called by integer_conv_int16.cpp; defined in
// int16_tile_avx2.cpp.
#pragma once

#include <cstdint>

#include "kernels/quantized_types.h"

namespace torchquant::kernels::avx2 {

inline constexpr int64_t kTilePixels = 6;
inline constexpr int64_t kTileChannels = 16;

// target[i] = x[i] - zero_point
void widen(const void* x, ElementType type, int64_t n, int32_t zero_point, int16_t* target);

// Up to 6 pixels x 16 channels: acc[p * 32 + c] = sum over pairs. `x` holds pairs of inputs, a pixel every `x_step`
// elements; `weight` is [pairs][16][2].
struct Int16TileArgs {
  const int16_t* x;
  int64_t x_step;
  int64_t pixels;
  const int16_t* weight;
  int64_t pairs;
  int32_t* accumulators;
};
void compute_tile(const Int16TileArgs& args);

// One pixel x 16 channels of a depthwise convolution: taps in pairs, at `offsets` bytes from x; an odd last tap is
// paired with itself and a weight of 0. `weight` is [pairs][2][16], in the order in which the instructions interleave.
struct Int16DepthwiseArgs {
  const void* x;
  ElementType type;
  const int64_t* offsets;
  int64_t pairs;
  int64_t channels;  // to read, at most 16
  int32_t zero_point;
  const int16_t* weight;
  int32_t* accumulators;
};
void compute_depthwise(const Int16DepthwiseArgs& args);

// Channel whose weight stands at element i of the 32 of a pair, and the tap of the pair it belongs to.
inline constexpr int64_t depthwise_pair_channel(int64_t i) { return i / 16 * 4 + i % 16 / 8 * 8 + i % 8 / 2; }
inline constexpr int64_t depthwise_pair_tap(int64_t i) { return i % 2; }

}  // namespace torchquant::kernels::avx2
