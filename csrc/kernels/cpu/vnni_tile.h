// The tile kernels of the VNNI convolution engine: up to 14 output pixels x 32 output channels. Called by
// integer_conv_vnni.cpp; defined in vnni_tile_avx512_vnni.cpp and vnni_tile_avx_vnni.cpp, whose functions a test checks
// for spills.
#pragma once

#include <array>
#include <cstdint>

namespace torchquant::kernels::avx512_vnni {

inline constexpr int64_t kTilePixels = 14;
inline constexpr int64_t kTileChannels = 32;
// Weights of one panel for one step: four input channels of 32 output channels.
inline constexpr int64_t kStepBytes = 4 * kTileChannels;

// The distance that covers the latency of L2, where weights mostly wait, at the speed of the loop.
inline constexpr int64_t kAheadInL2 = 1024;

// From a scaled value to a code: everything after the rounding happens on integers, so that one set of vectors serves
// every output type and every clamp. Codes are biased by 128 where they are signed, and flipped back at the end.
struct CodeVectors {
  alignas(64) int16_t zero_point[32];
  alignas(64) uint8_t lo[64];
  alignas(64) uint8_t hi[64];
  alignas(64) uint8_t flip[64];
};

// Pixels lie in two runs, each of them evenly spaced; the first has (pixels + 1) / 2. Steps in bytes.
struct TileArgs {
  const uint8_t* x[2];
  int64_t x_step;
  const int64_t* segments;            // where each contiguous piece of a pixel's inputs starts, in bytes from x
  int64_t segment_count;              // at least 1
  int64_t segment_steps;              // its bytes / 4; at least 1
  const int8_t* weight;               // [segment_count * segment_steps][32][4]
  int64_t weight_ahead = kAheadInL2;  // bytes by which weights are fetched into L1 before they are used
  const char* prefetch;               // weights that will be needed next
  int64_t prefetch_step;              // bytes to move on per 16 bytes of input
  const int32_t* start;               // what the accumulators start with, per channel
  const float* multiplier;
  const float* bias;
  const CodeVectors* codes;
  uint8_t* out[2];
  int64_t out_step;
  const uint8_t* residual[2];
  int64_t residual_step;
  float residual_multiplier;
  int32_t residual_zero_point;
  const float* row_scale[2];  // of each pixel, times the multiplier; only for kFloats
  int32_t* accumulators;      // [pixels][32], only for kAccumulators
  // Only for row_tile_kernels: what is added to `start`, per pixel.
  const int32_t* row_start[2];
  // Only where a panel joins groups: which four inputs each lane takes, of the 64 bytes at x for the first 16 channels
  // and of those at x + half_offset for the others.
  const int32_t* lane_inputs;  // [segment_steps][32]
  int64_t half_offset;
  uint8_t input_flip;  // 0x80 for int8 inputs
};

// What a tile kernel writes: codes of 32 channels, the same with a uint8 residual added, scaled floats, or the bare
// accumulators.
enum class TileOutput : int { kCodes = 0, kCodesWithResidual, kFloats, kAccumulators };

using TileKernel = void (*)(const TileArgs&);
// Entry i computes i + 1 pixels.
using TileKernels = std::array<TileKernel, kTilePixels>;

// Kernels for segments of `segment_steps` steps. `signed_input` reads int8 codes, as if their zero point were higher by
// 128.
const TileKernels& tile_kernels(bool signed_input, int64_t segment_steps, TileOutput output);

// The same with a start for each pixel, for what stands for a weight and has a zero point of its own. No residual.
const TileKernels& row_tile_kernels(bool signed_input, int64_t segment_steps, TileOutput output);

// The same for panels that join narrow groups, for up to 8 pixels.
inline constexpr int64_t kJoinedPixels = 8;
inline constexpr int64_t kJoinedBytes = 64;  // read at a time
using JoinedKernels = std::array<TileKernel, kJoinedPixels>;
const JoinedKernels& joined_kernels(TileOutput output);

}  // namespace torchquant::kernels::avx512_vnni

namespace torchquant::kernels::avx_vnni {

inline constexpr int64_t kTilePixels = 12;

// The same for AVX-VNNI, on the same weights; entry i computes i + 1 pixels. They write accumulators only.
using TileKernels = std::array<avx512_vnni::TileKernel, kTilePixels>;
const TileKernels& tile_kernels(bool signed_input);

}  // namespace torchquant::kernels::avx_vnni
