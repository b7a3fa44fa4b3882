// Integer convolutions and linear layers on the device: dense NHWC codes, weights packed once. A linear layer is a 1x1
// convolution over an image of height 1. Called by csrc/ops/quantized_conv_cuda.cpp and quantized_linear_cuda.cpp;
// results have the bits of the reference (kernels/quantized_conv.h).
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "kernels/integer_conv.h"
#include "kernels/quantized_types.h"

namespace torchquant::kernels::cuda {

// Weights as PyTorch stores them: [O, I/g, kh, kw], transposed [I, O/g, kh, kw]. Strides are in codes; those of 4-bit
// rows, which are packed one by one, are in bytes for the rows.
struct StoredConvWeight {
  const void* data;
  int32_t bits;       // 8 or 4
  int32_t quant_min;  // what a stored 4-bit 0 stands for
  int64_t strides[4];
};

// The kernel that runs a layer, as packed_weights() of a converted model names it.
const char* integer_conv_kernel(const ConvSpec& spec);

int64_t packed_conv_bytes(const ConvSpec& spec);
// `packed`: packed_conv_bytes() bytes, aligned to 16.
cudaError_t pack_conv(const ConvSpec& spec, const StoredConvWeight& weight, void* packed, cudaStream_t stream);

// Which part of the output a block of the tensor-core kernel computes. kAuto is what callers want; tests name the rest.
enum class ConvTile : int { kAuto = 0, kLarge, kMedium, kSmall };

// All pointers are on the device. The residual is laid out like the output.
struct IntegerConvArgs {
  ConvSpec spec;
  int64_t batch;
  int64_t in_height;
  int64_t in_width;
  int64_t out_height;
  int64_t out_width;
  const void* x;
  ElementType x_type;  // codes
  int32_t x_zero_point;
  const void* packed;
  Epilogue epilogue;
  void* out;
  ConvTile tile = ConvTile::kAuto;
};

// Output pixels (batch * height * width) must be fewer than this.
inline constexpr int64_t kMaxConvPixels = int64_t{1} << 30;

cudaError_t integer_conv(const IntegerConvArgs& args, cudaStream_t stream);

}  // namespace torchquant::kernels::cuda
