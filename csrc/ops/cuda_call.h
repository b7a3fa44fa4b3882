// What the CUDA halves of the ops share: current stream, launch errors, parameters on the device. Used by ops/*_cuda.cpp.
#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>

#include "kernels/cuda/launch.h"
#include "ops/checks.h"
#include "ops/granularity.h"

namespace torchquant::ops {

// A dense input with its parameters in memory order, and the device guard that its kernels run under. Values of scales
// are not read back: a bad scale gives NaN (docs/numerics.md).
class CudaCall {
 public:
  CudaCall(const at::Tensor& x, const Granularity& granularity)
      : guard_(x.device()), input_(to_dense(x)), granularity_(granularity), layout_(param_layout(input_, granularity)) {}

  CudaCall(const at::Tensor& x, const at::Tensor& scale, const at::Tensor& zero_point, const Granularity& granularity)
      : CudaCall(x, granularity) {
    scale_ = params_in_memory_order(scale, input_, granularity);
    zero_point_ = params_in_memory_order(zero_point.view(scale.sizes()), input_, granularity);
  }

  const at::Tensor& input() const { return input_; }
  const kernels::ParamLayout& layout() const { return layout_; }
  kernels::FloatType type() const { return float_type(input_); }
  cudaStream_t stream() const { return c10::cuda::getCurrentCUDAStream(input_.get_device()); }

  kernels::cuda::DeviceQParams qparams() const {
    return {scale_.const_data_ptr<float>(), zero_point_.const_data_ptr<float>()};
  }

  // fp32 values, one for each parameter, in memory order.
  at::Tensor empty_params() const { return at::empty({layout_.params()}, input_.options().dtype(at::kFloat)); }

  // Values in memory order to the documented shape of parameters.
  at::Tensor to_params_shape(const at::Tensor& values) const {
    return params_from_memory_order(values, input_, granularity_);
  }

  at::Tensor reduction_scratch() const {
    const auto bytes = static_cast<int64_t>(kernels::cuda::reduction_scratch_bytes(layout_));
    return at::empty({bytes}, input_.options().dtype(at::kByte));
  }

 private:
  c10::cuda::CUDAGuard guard_;
  at::Tensor input_;
  Granularity granularity_;
  kernels::ParamLayout layout_;
  at::Tensor scale_;
  at::Tensor zero_point_;
};

}  // namespace torchquant::ops
