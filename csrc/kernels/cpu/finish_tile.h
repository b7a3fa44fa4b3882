// From the accumulators of a tile to its output, for what a tile kernel does not do in registers: every activation,
// float outputs, signed residuals, narrow panels. Called by the integer convolution engines.
#pragma once

#include <cstdint>

#include "kernels/quantized_types.h"

namespace torchquant::kernels {

inline constexpr int64_t kFinishPixels = 14;
inline constexpr int64_t kFinishChannels = 32;

// A run of pixels and up to 32 channels; pointers are to the first channel of the first pixel.
struct FinishArgs {
  const int32_t* accumulators;  // [pixels][32]
  int64_t pixels;               // at most 14
  int64_t channels;             // at most 32
  const float* multiplier;      // [32]
  const float* bias;            // [32]
  const float* row_scale;       // per pixel, times the multiplier; null for none
  Residual residual;
  int64_t residual_step;  // in bytes, from pixel to pixel
  const OutputSpec* output;
  void* out;
  int64_t out_step;  // in bytes
};

using FinishTile = void (*)(const FinishArgs&);

namespace avx2 {
void finish_tile(const FinishArgs& args);
}
namespace avx512 {
void finish_tile(const FinishArgs& args);
}

}  // namespace torchquant::kernels
