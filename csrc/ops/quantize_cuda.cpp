// CUDA half of quantize, dequantize, choose_qparams, qparams_from_min_max and power_of_two_qparams.
#include <ATen/ops/full.h>
#include <ATen/ops/zeros.h>
#include <torch/library.h>

#include <limits>

#include "ops/cuda_call.h"
#include "ops/ops.h"

namespace torchquant::ops {
namespace {

using OptionalInt = std::optional<int64_t>;

at::Tensor quantize(const at::Tensor& x, const at::Tensor& scale, const at::Tensor& zero_point, OptionalInt axis,
                    OptionalInt group_size, at::ScalarType dtype, OptionalInt quant_min, OptionalInt quant_max) {
  const at::Tensor q = check_and_allocate<&torchquant::quantize>("torchquant::quantize", x, scale, zero_point, axis,
                                                                 group_size, dtype, quant_min, quant_max);
  const CudaCall call(x, scale, zero_point, {axis, group_size});
  const bool is_signed = dtype == at::kChar;
  const auto range = to_range(quant_min.value_or(is_signed ? -128 : 0), quant_max.value_or(is_signed ? 127 : 255));
  C10_CUDA_CHECK(kernels::cuda::quantize(call.input().const_data_ptr(), q.mutable_data_ptr(), call.type(),
                                         call.layout(), call.qparams(), range, call.stream()));
  return q;
}

at::Tensor dequantize(const at::Tensor& q, const at::Tensor& scale, const at::Tensor& zero_point, OptionalInt axis,
                      OptionalInt group_size, at::ScalarType dtype) {
  const at::Tensor y = check_and_allocate<&torchquant::dequantize>("torchquant::dequantize", q, scale, zero_point, axis,
                                                                   group_size, dtype);
  const CudaCall call(q, scale, zero_point, {axis, group_size});
  C10_CUDA_CHECK(kernels::cuda::dequantize(call.input().const_data_ptr(), y.mutable_data_ptr(),
                                           q.scalar_type() == at::kChar, float_type(y), call.layout(), call.qparams(),
                                           call.stream()));
  return y;
}

void launch_qparams(const at::Tensor& min_val, const at::Tensor& max_val, const at::Tensor& scale,
                    const at::Tensor& zero_point, bool symmetric, int64_t quant_min, int64_t quant_max) {
  C10_CUDA_CHECK(kernels::cuda::qparams_from_min_max(
      min_val.const_data_ptr<float>(), max_val.const_data_ptr<float>(), scale.mutable_data_ptr<float>(),
      zero_point.mutable_data_ptr<float>(), min_val.numel(), symmetric, to_range(quant_min, quant_max),
      c10::cuda::getCurrentCUDAStream(min_val.get_device())));
}

std::tuple<at::Tensor, at::Tensor> choose_qparams(const at::Tensor& x, OptionalInt axis, OptionalInt group_size,
                                                  bool symmetric, int64_t quant_min, int64_t quant_max) {
  const auto [scale, zero_point] = check_and_allocate<&torchquant::choose_qparams>(
      "torchquant::choose_qparams", x, axis, group_size, symmetric, quant_min, quant_max);
  const CudaCall call(x, {axis, group_size});
  const auto fp32 = call.input().options().dtype(at::kFloat);
  constexpr float kInfinity = std::numeric_limits<float>::infinity();
  const at::Tensor min_val = at::full({call.layout().params()}, kInfinity, fp32);
  const at::Tensor max_val = at::full({call.layout().params()}, -kInfinity, fp32);
  const at::Tensor nonfinite_count = at::zeros({1}, fp32.dtype(at::kLong));
  const at::Tensor scratch = call.reduction_scratch();
  C10_CUDA_CHECK(kernels::cuda::observe_min_max(call.input().const_data_ptr(), call.type(), call.layout(),
                                                observer_state(min_val, max_val, nonfinite_count),
                                                scratch.mutable_data_ptr(), call.stream()));
  const at::Tensor scales = at::empty({call.layout().params()}, fp32);
  const at::Tensor zero_points = at::empty({call.layout().params()}, fp32);
  launch_qparams(min_val, max_val, scales, zero_points, symmetric, quant_min, quant_max);
  scale.copy_(call.to_params_shape(scales));
  zero_point.copy_(call.to_params_shape(zero_points));
  return {scale, zero_point};
}

std::tuple<at::Tensor, at::Tensor> qparams_from_min_max(const at::Tensor& min_val, const at::Tensor& max_val,
                                                        bool symmetric, int64_t quant_min, int64_t quant_max) {
  const auto outputs = check_and_allocate<&torchquant::qparams_from_min_max>(
      "torchquant::qparams_from_min_max", min_val, max_val, symmetric, quant_min, quant_max);
  const c10::cuda::CUDAGuard guard(min_val.device());
  launch_qparams(min_val.contiguous(), max_val.contiguous(), std::get<0>(outputs), std::get<1>(outputs), symmetric,
                 quant_min, quant_max);
  return outputs;
}

std::tuple<at::Tensor, at::Tensor> power_of_two_qparams(const at::Tensor& scale, const at::Tensor& zero_point,
                                                        bool symmetric, int64_t quant_min, int64_t quant_max) {
  const auto outputs = check_and_allocate<&torchquant::power_of_two_qparams>(
      "torchquant::power_of_two_qparams", scale, zero_point, symmetric, quant_min, quant_max);
  const c10::cuda::CUDAGuard guard(scale.device());
  const at::Tensor scales = scale.contiguous();
  const at::Tensor zero_points = zero_point.contiguous();
  C10_CUDA_CHECK(kernels::cuda::power_of_two_qparams(
      scales.const_data_ptr<float>(), zero_points.const_data_ptr<float>(),
      std::get<0>(outputs).mutable_data_ptr<float>(), std::get<1>(outputs).mutable_data_ptr<float>(), scales.numel(),
      symmetric, to_range(quant_min, quant_max), c10::cuda::getCurrentCUDAStream(scale.get_device())));
  return outputs;
}

}  // namespace

TORCH_LIBRARY_IMPL(torchquant, CUDA, m) {
  m.impl("quantize", quantize);
  m.impl("dequantize", dequantize);
  m.impl("choose_qparams", choose_qparams);
  m.impl("qparams_from_min_max", qparams_from_min_max);
  m.impl("power_of_two_qparams", power_of_two_qparams);
}

}  // namespace torchquant::ops
