// How weight-only weights lie in memory for the tensor cores: the order of a block's codes as the registers of
// mma.m16n8k16 take them. Used by the kernels that pack and multiply (linear_weight_only*.cu) and by their tests.
//
// A block is 16 output channels by 64 steps along k, as four products of 16 steps. A sum over k may take its terms in
// any order, so a lane's member m has the eight neighbours from 32 * half + 8 * m on as its part of the two products of
// a half: one 16-byte load of a 16-bit input. A block takes 16 bytes of each lane (4 bits) or twice that (8 bits), and
// the blocks of 16 channels follow each other along k.
#pragma once

#include <cstdint>

#include "kernels/weight_only.h"
#include "numerics/macros.h"

namespace torchquant::kernels::cuda {

inline constexpr int64_t kBlockChannels = 16;
inline constexpr int64_t kBlockDepth = 64;
inline constexpr int64_t kScaleDepth = 32;  // half a block: the finest group that the packed kernels take
inline constexpr int64_t kBlockCodes = kBlockChannels * kBlockDepth;

// The packed weight: codes, then a scale (and, where there are any, a zero point) per group and channel, channels
// innermost. Zero points count from the stored form: code - quant_min for 4 bits, code + 128 for 8.
struct PackedWeightLayout {
  explicit TQ_HOST_DEVICE constexpr PackedWeightLayout(const WeightOnlyShape& shape)
      : bits(shape.bits),
        channel_blocks((shape.out_channels + kBlockChannels - 1) / kBlockChannels),
        depth_blocks((shape.depth + kBlockDepth - 1) / kBlockDepth),
        groups(shape.depth / shape.group_size),
        scale_offset(channel_blocks * depth_blocks * block_bytes()),
        zero_point_offset(scale_offset + groups * padded_channels() * static_cast<int64_t>(sizeof(float))),
        bytes(zero_point_offset +
              (shape.has_zero_points ? groups * padded_channels() * static_cast<int64_t>(sizeof(float)) : 0)) {}

  TQ_HOST_DEVICE constexpr int64_t block_bytes() const { return kBlockCodes * bits / 8; }
  TQ_HOST_DEVICE constexpr int64_t padded_channels() const { return channel_blocks * kBlockChannels; }

  int64_t bits;
  int64_t channel_blocks;
  int64_t depth_blocks;
  int64_t groups;
  int64_t scale_offset;
  int64_t zero_point_offset;
  int64_t bytes;
};

// Shapes that the packed kernels do not take go to the plain one. Group numbers are found by a multiplication that is
// exact up to kMaxDepth; blocks of channels are an axis of the grid that ends at 65535.
constexpr bool takes_packed(const WeightOnlyShape& shape) {
  constexpr int64_t kMaxDepth = int64_t{1} << 20;
  constexpr int64_t kMaxChannels = 65535 * kBlockChannels;
  return (shape.group_size == shape.depth || shape.group_size % kScaleDepth == 0) && shape.depth <= kMaxDepth &&
         shape.out_channels <= kMaxChannels;
}

// Where in a block a code belongs.
struct BlockPlace {
  int channel;  // [0, 16)
  int k;        // [0, 64)
};

// `product` of the four, `reg` and `element` of its register a[reg]: see multiply_add_half in intrinsics.cuh.
TQ_HOST_DEVICE BlockPlace block_place(int lane, int product, int reg, int element) {
  const int group = lane / 4;
  const int member = lane % 4;
  return {group + reg % 2 * 8, product / 2 * 32 + member * 8 + product % 2 * 4 + reg / 2 * 2 + element};
}

// Code `index` of a block in memory order. 4 bits: a lane's word is a product; nibbles reg and reg + 4 are the elements
// of a register, so that one mask takes both. 8 bits: a lane's eight bytes are a product, element after element; the
// first two products come before the others.
TQ_HOST_DEVICE BlockPlace place_of_code(int bits, int index) {
  if (bits == 4) {
    const int nibble = index % 8;
    return block_place(index / 32, index / 8 % 4, nibble % 4, nibble / 4);
  }
  const int byte = index % 8;
  return block_place(index / 16 % 32, index / 512 * 2 + index / 8 % 2, byte / 2, byte % 2);
}

}  // namespace torchquant::kernels::cuda
