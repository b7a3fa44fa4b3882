// CUDA training kernels behind plain pointers and a stream; called by csrc/ops/*_cuda.cpp. No Torch, no ATen: a .cu
// file compiles in seconds. Every function enqueues work on `stream` and returns its launch error; none waits for the
// device.
#pragma once

#include <cuda_runtime_api.h>

#include "kernels/fake_quantize.h"
#include "kernels/param_layout.h"

namespace torchquant::kernels::cuda {

// scale and zero_point: layout.params() fp32 values on the device; zero points enter as clamp(rhe(zero_point)).
struct DeviceQParams {
  const float* scale;
  const float* zero_point;
};

cudaError_t fake_quantize(const void* x, void* y, FloatType type, ParamLayout layout, DeviceQParams p, QRange range,
                          cudaStream_t stream);

cudaError_t fake_quantize_backward(const void* grad, const void* x, void* grad_x, FloatType type, ParamLayout layout,
                                   DeviceQParams p, QRange range, cudaStream_t stream);

// Bytes of scratch that learnable_backward, observe_* and observe_fake_quantize need for this layout.
size_t reduction_scratch_bytes(ParamLayout layout);

// scale_grad and zero_point_grad: layout.params() fp32 values, multiplied by grad_factor.
cudaError_t fake_quantize_learnable_backward(const void* grad, const void* x, void* grad_x, float* scale_grad,
                                             float* zero_point_grad, FloatType type, ParamLayout layout,
                                             DeviceQParams p, QRange range, float grad_factor, void* scratch,
                                             cudaStream_t stream);

// q: one byte per element, int8 or uint8 by the range.
cudaError_t quantize(const void* x, void* q, FloatType type, ParamLayout layout, DeviceQParams p, QRange range,
                     cudaStream_t stream);

cudaError_t dequantize(const void* q, void* y, bool q_signed, FloatType type, ParamLayout layout, DeviceQParams p,
                       cudaStream_t stream);

// What an observation writes into the running state.
struct ObserverState {
  float* min_val;            // layout.params() values; +inf before anything was seen
  float* max_val;            // layout.params() values; -inf before anything was seen
  int64_t* nonfinite_count;  // one value, added to
};

// Widens the running range by x.
cudaError_t observe_min_max(const void* x, FloatType type, ParamLayout layout, ObserverState state, void* scratch,
                            cudaStream_t stream);

// Moves the running range towards x's: m += averaging_constant * (batch - m); the first batch sets it.
cudaError_t observe_moving_average(const void* x, FloatType type, ParamLayout layout, ObserverState state,
                                   float averaging_constant, void* scratch, cudaStream_t stream);

// One training step: moves the running range towards x's, writes scale and zero_point (layout.params() values each) and
// y = fake_quantize(x) with them. y == x is not allowed.
cudaError_t observe_fake_quantize(const void* x, void* y, FloatType type, ParamLayout layout, ObserverState state,
                                  float averaging_constant, bool symmetric, QRange range, float* scale,
                                  float* zero_point, void* scratch, cudaStream_t stream);

// scale and zero_point (params values each) from ranges.
cudaError_t qparams_from_min_max(const float* min_val, const float* max_val, float* scale, float* zero_point,
                                 int64_t params, bool symmetric, QRange range, cudaStream_t stream);

// New scale and zero_point (params values each) with scales that are powers of two.
cudaError_t power_of_two_qparams(const float* scale, const float* zero_point, float* new_scale, float* new_zero_point,
                                 int64_t params, bool symmetric, QRange range, cudaStream_t stream);

// Running histograms of several channels, one after the other.
struct Histogram {
  int64_t* counts;  // [channels, bins]
  float* min_val;
  float* max_val;
  int64_t channels;
  int32_t bins;
};

// x: [channels, length] with length > 0. Widens each channel's range by its batch range, moves its counts and counts
// the finite values of x. scratch: channels * bins values.
cudaError_t observe_histogram(const float* x, int64_t length, Histogram state, const float* batch_min,
                              const float* batch_max, int64_t* scratch, cudaStream_t stream);

}  // namespace torchquant::kernels::cuda
