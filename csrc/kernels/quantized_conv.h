// Integer convolution over NHWC codes as the reference computes it: forward and transposed, grouped, depthwise,
// dilated. ConvWeight is also how the engine (integer_conv.h) gets its weights.
#pragma once

#include <cstdint>

#include "kernels/image.h"
#include "kernels/quantized_types.h"

namespace torchquant::kernels {

// One spatial dimension.
struct ConvAxis {
  int64_t in_size;
  int64_t out_size;
  int64_t kernel;
  int64_t stride;
  int64_t padding;
  int64_t dilation;
};

struct ConvGeometry {
  int64_t batch;
  int64_t in_channels;
  int64_t out_channels;
  int64_t groups;
  bool transposed;
  ConvAxis height;
  ConvAxis width;
};

// int8 weights as PyTorch stores them: [O, I/g, kh, kw], transposed [I, O/g, kh, kw]; strides in elements.
struct ConvWeight {
  const int8_t* data;
  int64_t strides[4];
};

// `weight` is what arrange_conv_weight wrote; `residual` counts only where the epilogue has one.
struct ConvArgs {
  ConvGeometry geometry;
  ImageLayout x_layout;
  ImageLayout out_layout;
  ImageLayout residual_layout;
  const void* x;
  ElementType x_type;
  int32_t x_zero_point;
  const int8_t* weight;
  Epilogue epilogue;
  void* out;
};

}  // namespace torchquant::kernels
