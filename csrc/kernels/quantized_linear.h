// Matrix products with integer weights and float inputs. Called by csrc/ops/quantized_linear*.cpp and
// quantized_embedding.cpp, which split rows and output channels over threads.
#pragma once

#include <cstdint>

#include "kernels/quantized_types.h"

namespace torchquant::kernels {

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
