// Weight-only matrix products on rearranged weights: fp32 input, int8 or int4 codes with a scale per output channel or
// per group. Called by csrc/ops/quantized_linear_weight_only.cpp, which keeps the rearranged weights.
#pragma once

#include <cstdint>

#include "kernels/quantized_types.h"

namespace torchquant::kernels {

// What a layer's weight is, apart from its values. A layer with one scale per channel has one group.
struct WeightOnlyShape {
  int64_t out_channels;
  int64_t depth;
  int64_t group_size;
  int32_t bits;       // 8 or 4
  int32_t quant_min;  // 4 bits: what a stored 0 stands for
  bool has_zero_points;
};

// The layout: blocks of 16 output channels, one a lane, so that a vector of weights needs no sum over lanes. Each group
// of a block begins with its 16 scales (and 16 zero points), so that a matrix is read as one stream, and goes on with
// chunks of 64 bytes: 4 steps along K of 16 int8 codes, or 8 steps of 4 bits in 16 words, the first in the lowest bits.
// A group ends with a whole chunk, the matrix with a whole block.
inline constexpr int64_t kWeightBlock = 16;
inline constexpr int64_t kWeightChunkBytes = 64;

struct WeightOnlyLayout {
  explicit constexpr WeightOnlyLayout(const WeightOnlyShape& shape)
      : chunk_depth(shape.bits == 4 ? 8 : 4),
        groups(shape.depth / shape.group_size),
        chunks((shape.group_size + chunk_depth - 1) / chunk_depth),
        header_bytes((shape.has_zero_points ? 2 : 1) * kWeightBlock * static_cast<int64_t>(sizeof(float))),
        group_bytes(header_bytes + chunks * kWeightChunkBytes),
        block_bytes(groups * group_bytes),
        blocks((shape.out_channels + kWeightBlock - 1) / kWeightBlock) {}

  int64_t chunk_depth;   // steps along K in a chunk
  int64_t groups;        // in a row
  int64_t chunks;        // in a group
  int64_t header_bytes;  // of a group
  int64_t group_bytes;
  int64_t block_bytes;
  int64_t blocks;
};

// Writes blocks [blocks.begin, blocks.end) of the rearranged weights. `packed` holds all of them: blocks * block_bytes
// bytes, aligned to 64. Scales and zero points (null where the shape has none): [out_channels, groups].
void pack_weight_only(const WeightOnlyShape& shape, const void* codes, const float* scale, const float* zero_point,
                      IndexRange blocks, uint8_t* packed);

// y[row, c] = activation(sum_k x[row, k] * ((q - zero_point) * scale) + bias[c]), summed in fp32 in an order of the
// kernel's own (a named exception to bit-equality).
struct PackedWeightOnlyArgs {
  const float* x;
  int64_t rows;
  WeightOnlyShape shape;
  const uint8_t* packed;
  const float* bias;  // may be null
  ActivationSpec activation;
  float* out;
};

}  // namespace torchquant::kernels
