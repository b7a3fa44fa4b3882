// What integer_conv.cu hands to its two families of kernels: integer_conv_mma.cu and integer_conv_direct.cu.
#pragma once

#include <cuda_runtime.h>

#include "kernels/cuda/conv_layout.h"
#include "kernels/cuda/integer_conv.h"

namespace torchquant::kernels::cuda {

// IntegerConvArgs as the kernels read it.
struct ConvParams {
  ConvShape shape;
  const uint8_t* x;
  int32_t zero_point;
  bool signed_x;
  const int8_t* weight;
  const int32_t* weight_sum;
  int64_t weight_pitch;  // codes of a row; depthwise: channels side by side
  Epilogue epilogue;
  void* out;
};

// A group whose outputs would leave most of a tensor-core tile empty.
inline bool is_narrow_group(const ConvSpec& spec) { return spec.groups > 1 && spec.out_channels / spec.groups < 16; }

cudaError_t conv_mma(const ConvParams& params, ConvTile tile, cudaStream_t stream);
cudaError_t conv_depthwise(const ConvParams& params, cudaStream_t stream);
cudaError_t conv_direct(const ConvParams& params, cudaStream_t stream);

}  // namespace torchquant::kernels::cuda
