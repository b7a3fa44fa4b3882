// Integer matrix products: static, dynamic and weight-only. Called by csrc/ops/quantized_linear*.cpp and
// quantized_embedding.cpp, which split rows and output channels over threads.
#pragma once

#include <cstdint>

#include "kernels/quantized_types.h"

namespace torchquant::kernels {

// y[row, c] = epilogue(sum_k (x[row, k] - x_zero_point) * weight[c, k]); everything dense and row-major.
struct LinearArgs {
  const void* x;
  ElementType x_type;
  int32_t x_zero_point;
  int64_t depth;  // K
  const int8_t* weight;
  int64_t out_channels;
  Epilogue epilogue;
  void* out;
};

// Each row of x is quantized here: symmetric, s = absmax / 127 over its finite values, codes in [-127, 127].
// y[row, c] = activation(fmaf(float(acc), s * weight_scale[c], bias[c])); `bias` may be null.
struct LinearDynamicArgs {
  const float* x;
  int64_t depth;
  const int8_t* weight;
  int64_t out_channels;
  const float* weight_scale;
  const float* bias;
  ActivationSpec activation;
  float* out;
};

// y[row, c] = activation(sum_k x[row, k] * ((q - zero_point) * scale) + bias[c]), summed in fp32 in an order of the
// kernel's own (a named exception to bit-equality). Scales and zero points: [out_channels, depth / group_size].
struct LinearWeightOnlyArgs {
  const float* x;
  int64_t rows;
  StoredWeight weight;
  int64_t out_channels;
  const float* weight_scale;
  const float* weight_zero_point;  // may be null: all 0
  int64_t group_size;
  const float* bias;  // may be null
  ActivationSpec activation;
  float* out;
};

// out[i, :] = dequantized row indices[i]; the caller has checked the indices.
struct EmbeddingArgs {
  const int64_t* indices;
  StoredWeight weight;
  const float* weight_scale;
  const float* weight_zero_point;  // may be null: all 0
  int64_t group_size;
  float* out;
};

}  // namespace torchquant::kernels
