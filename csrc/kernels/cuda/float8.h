// fp8 kernels on CUDA: quantize, dequantize and fake-quantize rows (numerics/float8.h), and the scaling of a product's
// sums. Called by csrc/ops/float8_cuda.cpp and quantized_linear_fp8_cuda.cpp.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "kernels/fake_quantize.h"
#include "kernels/float8.h"

namespace torchquant::kernels::cuda {

// A dense matrix of floats [rows, depth].
struct FloatRows {
  const void* data;
  FloatType type;
  int64_t rows;
  int64_t depth;
};

// Scales on the device, one for all rows or one for each.
struct RowScales {
  const float* data;
  bool per_row;
};

// codes: [rows, pitch], with zeros from depth to pitch.
cudaError_t quantize_float8(const FloatRows& x, RowScales scale, Float8Type type, uint8_t* codes, int64_t pitch,
                            cudaStream_t stream);
// The same with the scale of each row's own largest finite magnitude, which is written to scale[rows].
cudaError_t quantize_float8_dynamic(const FloatRows& x, Float8Type type, uint8_t* codes, int64_t pitch, float* scale,
                                    cudaStream_t stream);
// y: as x. scale.data == nullptr: of each row's own.
cudaError_t fake_quantize_float8(const FloatRows& x, RowScales scale, Float8Type type, void* y, cudaStream_t stream);

// y: [rows, depth] of `y_type`; codes: [rows, depth].
cudaError_t dequantize_float8(const uint8_t* codes, int64_t rows, int64_t depth, RowScales scale, Float8Type type,
                              void* y, FloatType y_type, cudaStream_t stream);

// out[r][c] = fmaf(sums[r][c], row_scale[r] * channel_scale[c], bias[c]), narrowed once.
struct ScaleSumsArgs {
  const float* sums;  // [rows, pitch]
  int64_t pitch;
  int64_t rows;
  int64_t channels;
  RowScales row_scale;
  RowScales channel_scale;  // per_row means per channel
  const float* bias;        // null for none
  void* out;                // [rows, channels]
};
cudaError_t scale_sums(const ScaleSumsArgs& args, FloatType out_type, cudaStream_t stream);

}  // namespace torchquant::kernels::cuda
