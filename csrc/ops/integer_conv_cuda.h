// Runs the CUDA kernels of integer convolutions (kernels/cuda/integer_conv.h) for ops. Called by
// quantized_conv_cuda.cpp and quantized_linear_cuda.cpp.
#pragma once

#include <ATen/core/Tensor.h>

#include <optional>

#include "kernels/integer_conv.h"

namespace torchquant::ops {

// Arguments of an op, checked. x, residual and out are dense as the kernels read them: images NHWC in memory.
struct CudaConvCall {
  const char* op;
  kernels::ConvSpec spec;
  int64_t batch;
  kernels::ImageLayout in_image;
  kernels::ImageLayout out_image;
  at::Tensor x;
  int64_t x_zero_point;
  at::Tensor weight;
  int64_t weight_bits;
  int64_t weight_quant_min;
  at::Tensor multiplier;
  at::Tensor bias;
  std::optional<at::Tensor> residual;
  kernels::Residual residual_spec;
  kernels::OutputSpec output;
};

// Writes into `out`; a half output is computed in fp32 and converted. Enqueues on the current stream of x's device.
void run_integer_conv(const CudaConvCall& call, const at::Tensor& out);

}  // namespace torchquant::ops
