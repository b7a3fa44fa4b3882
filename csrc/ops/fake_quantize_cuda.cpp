// CUDA half of fake_quantize, its backwards, and fused_observe_fake_quantize.
#include <ATen/ops/empty_like.h>
#include <torch/library.h>

#include "ops/cuda_call.h"
#include "ops/ops.h"

namespace torchquant::ops {
namespace {

using OptionalInt = std::optional<int64_t>;

at::Tensor forward(const at::Tensor& x, const at::Tensor& scale, const at::Tensor& zero_point, OptionalInt axis,
                   OptionalInt group_size, int64_t quant_min, int64_t quant_max, double grad_factor) {
  const at::Tensor output = check_and_allocate<&torchquant::fake_quantize>(
      "torchquant::fake_quantize", x, scale, zero_point, axis, group_size, quant_min, quant_max, grad_factor);
  const CudaCall call(x, scale, zero_point, {axis, group_size});
  C10_CUDA_CHECK(kernels::cuda::fake_quantize(call.input().const_data_ptr(), output.mutable_data_ptr(), call.type(),
                                              call.layout(), call.qparams(), to_range(quant_min, quant_max),
                                              call.stream()));
  return output;
}

at::Tensor backward(const at::Tensor& grad, const at::Tensor& x, const at::Tensor& scale, const at::Tensor& zero_point,
                    OptionalInt axis, OptionalInt group_size, int64_t quant_min, int64_t quant_max) {
  const at::Tensor grad_x = check_and_allocate<&torchquant::fake_quantize_backward>(
      "torchquant::fake_quantize_backward", grad, x, scale, zero_point, axis, group_size, quant_min, quant_max);
  const CudaCall call(x, scale, zero_point, {axis, group_size});
  const at::Tensor dense_grad = with_layout_of(grad, call.input());
  C10_CUDA_CHECK(kernels::cuda::fake_quantize_backward(dense_grad.const_data_ptr(), call.input().const_data_ptr(),
                                                       grad_x.mutable_data_ptr(), call.type(), call.layout(),
                                                       call.qparams(), to_range(quant_min, quant_max), call.stream()));
  return grad_x;
}

std::tuple<at::Tensor, at::Tensor, at::Tensor> learnable_backward(const at::Tensor& grad, const at::Tensor& x,
                                                                  const at::Tensor& scale, const at::Tensor& zero_point,
                                                                  OptionalInt axis, OptionalInt group_size,
                                                                  int64_t quant_min, int64_t quant_max,
                                                                  double grad_factor) {
  const auto [grad_x, scale_grad, zero_point_grad] = check_and_allocate<&torchquant::fake_quantize_learnable_backward>(
      "torchquant::fake_quantize_learnable_backward", grad, x, scale, zero_point, axis, group_size, quant_min,
      quant_max, grad_factor);
  const CudaCall call(x, scale, zero_point, {axis, group_size});
  const at::Tensor dense_grad = with_layout_of(grad, call.input());
  const at::Tensor scratch = call.reduction_scratch();
  // In the documented order already, except for groups of a tensor whose memory is permuted.
  const bool direct = !group_size || call.input().is_contiguous();
  const at::Tensor scale_sum = direct ? scale_grad : at::empty_like(scale_grad);
  const at::Tensor zero_point_sum = direct ? zero_point_grad : at::empty_like(zero_point_grad);
  if (x.numel() == 0) {  // no element, no kernel that writes them
    scale_sum.zero_();
    zero_point_sum.zero_();
  }
  C10_CUDA_CHECK(kernels::cuda::fake_quantize_learnable_backward(
      dense_grad.const_data_ptr(), call.input().const_data_ptr(), grad_x.mutable_data_ptr(),
      scale_sum.mutable_data_ptr<float>(), zero_point_sum.mutable_data_ptr<float>(), call.type(), call.layout(),
      call.qparams(), to_range(quant_min, quant_max), static_cast<float>(grad_factor), scratch.mutable_data_ptr(),
      call.stream()));
  if (!direct) {
    scale_grad.copy_(call.to_params_shape(scale_sum.flatten()).view(scale_grad.sizes()));
    zero_point_grad.copy_(call.to_params_shape(zero_point_sum.flatten()).view(zero_point_grad.sizes()));
  }
  return {grad_x, scale_grad, zero_point_grad};
}

at::Tensor fused(const at::Tensor& x, const at::Tensor& min_val, const at::Tensor& max_val,
                 const at::Tensor& nonfinite_count, const at::Tensor& scale, const at::Tensor& zero_point,
                 double averaging_constant, OptionalInt axis, bool symmetric, int64_t quant_min, int64_t quant_max) {
  const at::Tensor output = check_and_allocate<&torchquant::fused_observe_fake_quantize>(
      "torchquant::fused_observe_fake_quantize", x, min_val, max_val, nonfinite_count, scale, zero_point,
      averaging_constant, axis, symmetric, quant_min, quant_max);
  const CudaCall call(x, {axis, std::nullopt});
  const at::Tensor scratch = call.reduction_scratch();
  C10_CUDA_CHECK(kernels::cuda::observe_fake_quantize(
      call.input().const_data_ptr(), output.mutable_data_ptr(), call.type(), call.layout(),
      observer_state(min_val, max_val, nonfinite_count), static_cast<float>(averaging_constant), symmetric,
      to_range(quant_min, quant_max), scale.mutable_data_ptr<float>(), zero_point.mutable_data_ptr<float>(),
      scratch.mutable_data_ptr(), call.stream()));
  return output;
}

}  // namespace

TORCH_LIBRARY_IMPL(torchquant, CUDA, m) {
  m.impl("fake_quantize", forward);
  m.impl("fake_quantize_backward", backward);
  m.impl("fake_quantize_learnable_backward", learnable_backward);
  m.impl("fused_observe_fake_quantize", fused);
}

}  // namespace torchquant::ops
