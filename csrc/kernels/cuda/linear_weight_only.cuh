// What the packed weight-only kernels share: codes to registers of the tensor cores, inputs to registers, scales.
// Included by linear_weight_only.cu and linear_weight_only_tiled.cu.
#pragma once

#include "kernels/cuda/device.cuh"
#include "kernels/cuda/halves.cuh"
#include "kernels/cuda/linear_weight_only.h"
#include "numerics/requantize.h"

namespace torchquant::kernels::cuda {

// A lane's codes of a block as loaded: one 16-byte piece for 4 bits, two for 8.
template <int BITS>
struct BlockCodes {
  uint4 piece[BITS / 4];
};

template <int BITS>
__device__ __forceinline__ BlockCodes<BITS> load_block(const unsigned char* block, int lane) {
  BlockCodes<BITS> codes;
#pragma unroll
  for (int i = 0; i < BITS / 4; ++i) codes.piece[i] = reinterpret_cast<const uint4*>(block)[i * kWarp + lane];
  return codes;
}

// The weight's parts in memory, and what a code of a channel in a group stands for.
struct PackedWeight {
  __host__ __device__ PackedWeight(const WeightOnlyShape& shape, const void* packed)
      : codes(static_cast<const unsigned char*>(packed)),
        channel_blocks(static_cast<int>(PackedWeightLayout(shape).channel_blocks)),
        depth_blocks(static_cast<int>(PackedWeightLayout(shape).depth_blocks)),
        scale(reinterpret_cast<const float*>(codes + PackedWeightLayout(shape).scale_offset)),
        zero_point(shape.has_zero_points
                       ? reinterpret_cast<const float*>(codes + PackedWeightLayout(shape).zero_point_offset)
                       : nullptr),
        no_zero_point(shape.bits == 4 ? static_cast<float>(-shape.quant_min) : 128.0f),
        last_group(static_cast<int>(PackedWeightLayout(shape).groups) - 1) {
    const int64_t halves = (shape.group_size + kScaleDepth - 1) / kScaleDepth;
    groups_factor = static_cast<uint32_t>(((int64_t{1} << 31) + halves - 1) / halves);
  }

  // Group of half block `half`: floor(half / halves in a group), by a multiplication. What fills up the last block
  // belongs to the last group.
  __device__ __forceinline__ int group_of(int half) const {
    const uint64_t product = static_cast<uint64_t>(2 * static_cast<uint32_t>(half)) * groups_factor;
    const int group = static_cast<int>(product >> 32);
    return group < last_group ? group : last_group;
  }

  const unsigned char* codes;
  int channel_blocks;
  int depth_blocks;
  const float* scale;       // [groups, channel_blocks * 16]
  const float* zero_point;  // the same; may be null
  float no_zero_point;
  int last_group;
  uint32_t groups_factor;
};

// Scale and zero point of a lane's two channels (lane / 4 and 8 more) of a block, in one group.
struct LaneScales {
  float scale[2];
  float zero_point[2];
};

__device__ __forceinline__ LaneScales load_scales(const PackedWeight& weight, int block, int half, int lane) {
  const int64_t at = static_cast<int64_t>(weight.group_of(half)) * weight.channel_blocks * kBlockChannels +
                     block * kBlockChannels + lane / 4;
  LaneScales scales{{weight.scale[at], weight.scale[at + 8]}, {weight.no_zero_point, weight.no_zero_point}};
  if (weight.zero_point != nullptr) {
    scales.zero_point[0] = weight.zero_point[at];
    scales.zero_point[1] = weight.zero_point[at + 8];
  }
  return scales;
}

// Code - zero point, exactly, of product PRODUCT (0 or 1) of a half block, as the four registers a[]. Codes become
// floats without a conversion: put into the lowest bits of a number whose unit they are, which is then subtracted
// together with the zero point.
template <bool BFLOAT16, int BITS>
struct Dequantize;

template <bool BFLOAT16>
struct Dequantize<BFLOAT16, 4> {
  static constexpr uint32_t kOffsetBits = BFLOAT16 ? 0x43004300u : 0x64006400u;
  static constexpr float kOffset = BFLOAT16 ? 128.0f : 1024.0f;

  __device__ explicit Dequantize(const LaneScales& scales)
      : minus{twice<BFLOAT16>(-(kOffset + scales.zero_point[0])), twice<BFLOAT16>(-(kOffset + scales.zero_point[1]))} {}

  __device__ __forceinline__ void operator()(const BlockCodes<4>& codes, int half, int product,
                                             uint32_t (&a)[4]) const {
    const uint4 piece = codes.piece[0];
    const uint32_t word = half == 0 ? (product == 0 ? piece.x : piece.y) : (product == 0 ? piece.z : piece.w);
    constexpr uint32_t kOnes = BFLOAT16 ? 0x3f803f80u : 0x3c003c00u;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const uint32_t raised = ((word >> (4 * i)) & 0x000f000fu) | kOffsetBits;
      a[i] = multiply_add_pair<BFLOAT16>(raised, kOnes, minus[i % 2]);
    }
  }
  uint32_t minus[2];
};

__device__ __forceinline__ void words_of(const BlockCodes<8>& codes, int half, int product, uint32_t (&words)[2]) {
  const uint4 piece = half == 0 ? codes.piece[0] : codes.piece[1];
  words[0] = product == 0 ? piece.x : piece.z;
  words[1] = product == 0 ? piece.y : piece.w;
}

template <bool BFLOAT16>
struct Dequantize<BFLOAT16, 8> {
  __device__ explicit Dequantize(const LaneScales& scales)
      : bytes{BytesToHalves<BFLOAT16>(scales.zero_point[0]), BytesToHalves<BFLOAT16>(scales.zero_point[1])} {}

  __device__ __forceinline__ void operator()(const BlockCodes<8>& codes, int half, int product,
                                             uint32_t (&a)[4]) const {
    uint32_t words[2];
    words_of(codes, half, product, words);
#pragma unroll
    for (int i = 0; i < 4; ++i) a[i] = bytes[i % 2].pair(words[i / 2], i % 2);
  }
  BytesToHalves<BFLOAT16> bytes[2];
};

// Eight neighbours of an input row as the registers b[] of a half block's two products, in kParts parts.
template <typename T>
struct HalfInput {
  uint4 part[kParts<T>];

  __device__ __forceinline__ void get(int index, int product, uint32_t (&b)[2]) const {
    b[0] = product == 0 ? part[index].x : part[index].z;
    b[1] = product == 0 ? part[index].y : part[index].w;
  }
};

template <typename T>
__device__ __forceinline__ void store_result(const WeightOnlyArgs& args, int64_t row, int64_t channel, float sum) {
  const float v = args.bias != nullptr ? sum + args.bias[channel] : sum;
  static_cast<T*>(args.out)[row * args.shape.out_channels + channel] =
      from_float<T>(numerics::activate(v, args.activation));
}

}  // namespace torchquant::kernels::cuda
