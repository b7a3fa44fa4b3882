// CUDA half of fake_quantize and its backwards: stream, device guard, launch. Checks are those of the CPU half.
#include <ATen/ops/empty_like.h>
#include <torch/library.h>

#include "ops/cuda_call.h"

namespace torchquant::ops {
namespace {

at::Tensor forward(const at::Tensor& x, const at::Tensor& scale, const at::Tensor& zero_point,
                   std::optional<int64_t> axis, std::optional<int64_t> group_size, int64_t quant_min,
                   int64_t quant_max, double /*grad_factor*/) {
  check_fake_quantize("fake_quantize", x, scale, zero_point, {axis, group_size}, quant_min, quant_max);
  const CudaCall call(x, scale, zero_point, {axis, group_size});
  at::Tensor output = at::empty_like(call.input());
  C10_CUDA_CHECK(kernels::cuda::fake_quantize(call.input().const_data_ptr(), output.mutable_data_ptr(), call.type(),
                                              call.layout(), call.qparams(), to_range(quant_min, quant_max),
                                              call.stream()));
  return output;
}

at::Tensor backward(const at::Tensor& grad, const at::Tensor& x, const at::Tensor& scale, const at::Tensor& zero_point,
                    std::optional<int64_t> axis, std::optional<int64_t> group_size, int64_t quant_min,
                    int64_t quant_max) {
  check_fake_quantize_backward("fake_quantize_backward", grad, x, scale, zero_point, {axis, group_size}, quant_min,
                               quant_max);
  const CudaCall call(x, scale, zero_point, {axis, group_size});
  const at::Tensor dense_grad = with_layout_of(grad, call.input());
  at::Tensor grad_x = at::empty_like(call.input());
  C10_CUDA_CHECK(kernels::cuda::fake_quantize_backward(
      dense_grad.const_data_ptr(), call.input().const_data_ptr(), grad_x.mutable_data_ptr(), call.type(),
      call.layout(), call.qparams(), to_range(quant_min, quant_max), call.stream()));
  return grad_x;
}

std::tuple<at::Tensor, at::Tensor, at::Tensor> learnable_backward(
    const at::Tensor& grad, const at::Tensor& x, const at::Tensor& scale, const at::Tensor& zero_point,
    std::optional<int64_t> axis, std::optional<int64_t> group_size, int64_t quant_min, int64_t quant_max,
    double grad_factor) {
  check_fake_quantize_backward("fake_quantize_learnable_backward", grad, x, scale, zero_point, {axis, group_size},
                               quant_min, quant_max);
  const CudaCall call(x, scale, zero_point, {axis, group_size});
  const at::Tensor dense_grad = with_layout_of(grad, call.input());
  at::Tensor grad_x = at::empty_like(call.input());
  at::Tensor scale_grad = call.empty_params().zero_();  // stays zero where x is empty
  at::Tensor zero_point_grad = call.empty_params().zero_();
  const at::Tensor scratch = call.reduction_scratch();
  C10_CUDA_CHECK(kernels::cuda::fake_quantize_learnable_backward(
      dense_grad.const_data_ptr(), call.input().const_data_ptr(), grad_x.mutable_data_ptr(),
      scale_grad.mutable_data_ptr<float>(), zero_point_grad.mutable_data_ptr<float>(), call.type(), call.layout(),
      call.qparams(), to_range(quant_min, quant_max), static_cast<float>(grad_factor), scratch.mutable_data_ptr(),
      call.stream()));
  return {grad_x, call.to_params_shape(scale_grad).view(scale.sizes()),
          call.to_params_shape(zero_point_grad).view(zero_point.sizes()).to(zero_point.scalar_type())};
}

}  // namespace

TORCH_LIBRARY_IMPL(torchquant, CUDA, m) {
  m.impl("fake_quantize", forward);
  m.impl("fake_quantize_backward", backward);
  m.impl("fake_quantize_learnable_backward", learnable_backward);
}

}  // namespace torchquant::ops
