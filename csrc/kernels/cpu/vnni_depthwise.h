// The depthwise kernels of the AVX512-VNNI convolution engine: neighbouring output pixels of one row x 64 channels.
// Called by integer_depthwise_vnni.cpp; defined in vnni_depthwise_avx512_vnni.cpp.
//
// Four neighbouring pixels are interleaved so that every 32-bit lane holds one channel of each ("a quad"), which is
// what the VNNI instruction multiplies with four taps. Outputs that overlap share quads: the weights of an output are
// shifted inside the quad and padded with zeros.
#pragma once

#include <cstdint>

#include "kernels/cpu/vnni_tile.h"

namespace torchquant::kernels::avx512_vnni {

inline constexpr int64_t kDepthwiseChannels = 64;
// Weights of one quad for one output.
inline constexpr int64_t kQuadBytes = 4 * kDepthwiseChannels;
// Most pixels that one call may leave as accumulators.
inline constexpr int64_t kDepthwisePixels = 14;

// Interleaving leaves channel 16 l + 4 v + j of a block in lane 4 l + j of vector v.
inline constexpr int64_t depthwise_channel(int64_t vector, int64_t lane) {
  return 16 * (lane / 4) + 4 * vector + lane % 4;
}

// Steps in bytes.
struct DepthwiseArgs {
  const uint8_t* x;  // what tap (0, 0) of the first output reads
  int64_t row_step;  // from one kernel row to the next
  int64_t tap_step;  // from one tap of a row to the next
  int64_t x_step;    // from one output to the next
  int64_t rows;
  int64_t taps;          // of a row
  const int8_t* weight;  // [rows][quads and outputs in the order of the kernel][4 vectors][16 lanes][4 taps]
  const int32_t* start;  // [4][16], like the next two
  const float* multiplier;
  const float* bias;
  const CodeVectors* codes;
  uint64_t mask;  // channels that exist
  int64_t pixels;
  uint8_t* out;
  int64_t out_step;
  int32_t* accumulators;  // [2][kDepthwisePixels][32], in the order of the channels
};

// Kernels for one shape of row: `together` outputs share their quads.
struct DepthwiseKernel {
  int64_t taps;    // 0: any
  int64_t stride;  // 0: any
  int64_t together;
  void (*codes)(const DepthwiseArgs& args);         // `pixels` must be at least `together`
  void (*accumulators)(const DepthwiseArgs& args);  // and at most kDepthwisePixels
};

// The kernel for rows of `taps` adjacent taps and this stride. The one for `any` serves every row and dilation, and
// int8 inputs.
const DepthwiseKernel& depthwise_kernel(int64_t taps, int64_t stride);
const DepthwiseKernel& any_depthwise_kernel(bool signed_input);

// Whether tap pixels of quad q touch output t of a kernel.
constexpr bool quad_serves(int64_t quad, int64_t output, int64_t taps, int64_t stride) {
  const int64_t first = output * stride;
  return 4 * quad < first + taps && first < 4 * quad + 4;
}

}  // namespace torchquant::kernels::avx512_vnni
