// Weight-only linear layers on CUDA: 16- or 32-bit float input, int8 or int4 weights per channel or in groups along k.
// Called by csrc/ops/quantized_linear_weight_only_cuda.cpp.
//
//   out[r, c] = activation(sum over k of x[r, k] * ((q[c, k] - zero_point) * scale) + bias[c])
//
// Products of input and code are exact, sums are fp32: within (K / 8 + 64) * 2^-24 * (sum(|x * w_hat|) + |bias|) of the
// exact value. Zero points are whole numbers within 8 bits of every code.
#pragma once

#include <cuda_runtime_api.h>

#include "kernels/cuda/weight_only_layout.h"
#include "kernels/fake_quantize.h"

namespace torchquant::kernels::cuda {

struct WeightOnlyArgs {
  const void* x;   // [rows, depth] of `type`
  FloatType type;  // of x and out
  int64_t rows;
  WeightOnlyShape shape;
  const float* bias;  // [out_channels]; may be null
  ActivationSpec activation;
  void* out;  // [rows, out_channels] of `type`
};

// A weight as the op has it. Scales and zero points: [out_channels, depth / group_size].
struct StoredWeightOnly {
  const void* codes;
  const float* scale;
  const float* zero_point;  // null where the shape has none
};

// Writes PackedWeightLayout(shape).bytes bytes, aligned to 16. The shape is one that takes_packed().
cudaError_t pack_weight_only(const WeightOnlyShape& shape, const StoredWeightOnly& weight, void* packed,
                             cudaStream_t stream);

// On the packed weight.
cudaError_t linear_weight_only(const WeightOnlyArgs& args, const void* packed, cudaStream_t stream);

// On the weight as it is: for the shapes that have no packed form.
cudaError_t linear_weight_only_plain(const WeightOnlyArgs& args, const StoredWeightOnly& weight, cudaStream_t stream);

namespace detail {
// Few rows, or an input that the tiled kernel does not take (linear_weight_only.cu), and many (.._tiled.cu).
constexpr int64_t kTiledFromRows = 33;
bool takes_tiled(const WeightOnlyArgs& args);
cudaError_t linear_weight_only_tiled(const WeightOnlyArgs& args, const void* packed, cudaStream_t stream);
}  // namespace detail

}  // namespace torchquant::kernels::cuda
