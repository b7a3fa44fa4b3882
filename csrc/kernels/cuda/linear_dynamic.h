// Dynamic integer linear layers on CUDA: rows of floats quantized by kernels/quantize_rows.h's rule, times int8
// weights. Called by csrc/ops/quantized_linear_dynamic_cuda.cpp.
#pragma once

#include <cuda_runtime_api.h>

#include "kernels/fake_quantize.h"
#include "kernels/quantized_types.h"
#include "numerics/macros.h"

namespace torchquant::kernels::cuda {

// out[r, c] = activation(fmaf(float(sum over k of q_x[r, k] * weight[c, k]), s_x[r] * weight_scale[c], bias[c]))
struct LinearDynamicArgs {
  const void* x;   // [rows, depth] of `type`
  FloatType type;  // of x and out
  int64_t rows;
  int64_t depth;
  int64_t channels;
  const int8_t* weight;       // [channels, weight_stride], aligned to 16 bytes
  int64_t weight_stride;      // a multiple of 16, at least depth; what lies beyond depth is 0
  const float* weight_scale;  // [channels]
  const float* bias;          // [channels]; may be null
  ActivationSpec activation;
  void* out;  // [rows, channels] of `type`
};

// Tiles of 64 channels are an axis of the grid that ends at 65535.
inline constexpr int64_t kMaxDynamicChannels = int64_t{65535} * 64;

// Codes that a row takes beside its values: whole steps of the kernels' loops, filled up with zeros.
inline constexpr int64_t kDepthStep = 64;
TQ_HOST_DEVICE constexpr int64_t padded_depth(int64_t depth) {
  return (depth + kDepthStep - 1) / kDepthStep * kDepthStep;
}

// Few rows are quantized by each block that multiplies them; of many, codes and scales go through scratch.
inline constexpr int64_t kFewRows = 16;
constexpr bool quantizes_inside(int64_t rows, int64_t depth) {
  constexpr int64_t kSharedBytes = 96 * 1024 - 4096;  // what every GPU from sm_80 on gives a block
  return rows <= kFewRows && rows * (padded_depth(depth) + kDepthStep) <= kSharedBytes;
}

// Bytes that linear_dynamic needs beside its arguments, aligned to 16; 0 for few rows.
constexpr size_t linear_dynamic_scratch_bytes(int64_t rows, int64_t depth) {
  if (quantizes_inside(rows, depth)) return 0;
  return static_cast<size_t>(rows) * (static_cast<size_t>(padded_depth(depth)) + sizeof(float));
}

cudaError_t linear_dynamic(const LinearDynamicArgs& args, void* scratch, cudaStream_t stream);

// Writes a stored weight [channels, weight.columns] as int8 codes in rows of `stride`, filled up with zeros.
cudaError_t unpack_weight(const StoredWeight& weight, int64_t channels, int64_t stride, int8_t* codes,
                          cudaStream_t stream);

}  // namespace torchquant::kernels::cuda
