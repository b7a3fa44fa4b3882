// CUDA half of quantize, dequantize, choose_qparams and qparams_from_min_max: stream, device guard, launch.
#include <ATen/ops/empty_like.h>
#include <ATen/ops/full.h>
#include <ATen/ops/zeros.h>
#include <torch/library.h>

#include <limits>

#include "ops/cuda_call.h"

namespace torchquant::ops {
namespace {

at::Tensor quantize(const at::Tensor& x, const at::Tensor& scale, const at::Tensor& zero_point,
                    std::optional<int64_t> axis, std::optional<int64_t> group_size, at::ScalarType dtype,
                    std::optional<int64_t> quant_min, std::optional<int64_t> quant_max) {
  const auto range = check_quantize("quantize", x, scale, zero_point, {axis, group_size}, dtype, quant_min, quant_max);
  const CudaCall call(x, scale, zero_point, {axis, group_size});
  at::Tensor q = at::empty_like(call.input(), call.input().options().dtype(dtype));
  C10_CUDA_CHECK(kernels::cuda::quantize(call.input().const_data_ptr(), q.mutable_data_ptr(), call.type(),
                                         call.layout(), call.qparams(), range, call.stream()));
  return q;
}

at::Tensor dequantize(const at::Tensor& q, const at::Tensor& scale, const at::Tensor& zero_point,
                      std::optional<int64_t> axis, std::optional<int64_t> group_size, at::ScalarType dtype) {
  check_dequantize("dequantize", q, scale, zero_point, {axis, group_size}, dtype);
  const CudaCall call(q, scale, zero_point, {axis, group_size});
  at::Tensor y = at::empty_like(call.input(), call.input().options().dtype(dtype));
  C10_CUDA_CHECK(kernels::cuda::dequantize(call.input().const_data_ptr(), y.mutable_data_ptr(),
                                           q.scalar_type() == at::kChar, float_type(y), call.layout(), call.qparams(),
                                           call.stream()));
  return y;
}

std::tuple<at::Tensor, at::Tensor> launch_qparams(const at::Tensor& min_val, const at::Tensor& max_val, bool symmetric,
                                                  int64_t quant_min, int64_t quant_max, cudaStream_t stream) {
  at::Tensor scale = at::empty_like(min_val);
  at::Tensor zero_point = at::empty_like(min_val);
  C10_CUDA_CHECK(kernels::cuda::qparams_from_min_max(
      min_val.const_data_ptr<float>(), max_val.const_data_ptr<float>(), scale.mutable_data_ptr<float>(),
      zero_point.mutable_data_ptr<float>(), min_val.numel(), symmetric, to_range(quant_min, quant_max), stream));
  return {scale, zero_point};
}

std::tuple<at::Tensor, at::Tensor> choose_qparams(const at::Tensor& x, std::optional<int64_t> axis,
                                                  std::optional<int64_t> group_size, bool symmetric, int64_t quant_min,
                                                  int64_t quant_max) {
  check_choose_qparams("choose_qparams", x, {axis, group_size}, quant_min, quant_max);
  const CudaCall call(x, {axis, group_size});
  const auto fp32 = call.input().options().dtype(at::kFloat);
  constexpr float kInfinity = std::numeric_limits<float>::infinity();
  at::Tensor min_val = at::full({call.layout().params()}, kInfinity, fp32);
  at::Tensor max_val = at::full({call.layout().params()}, -kInfinity, fp32);
  at::Tensor nonfinite = at::zeros({1}, fp32.dtype(at::kLong));
  const at::Tensor scratch = call.reduction_scratch();
  const kernels::cuda::ObserverState state{min_val.mutable_data_ptr<float>(), max_val.mutable_data_ptr<float>(),
                                           nonfinite.mutable_data_ptr<int64_t>()};
  C10_CUDA_CHECK(kernels::cuda::observe_min_max(call.input().const_data_ptr(), call.type(), call.layout(), state,
                                                scratch.mutable_data_ptr(), call.stream()));
  const auto [scale, zero_point] = launch_qparams(min_val, max_val, symmetric, quant_min, quant_max, call.stream());
  return {call.to_params_shape(scale), call.to_params_shape(zero_point)};
}

std::tuple<at::Tensor, at::Tensor> qparams_from_min_max(const at::Tensor& min_val, const at::Tensor& max_val,
                                                        bool symmetric, int64_t quant_min, int64_t quant_max) {
  check_qparams_from_min_max("qparams_from_min_max", min_val, max_val, quant_min, quant_max);
  const c10::cuda::CUDAGuard guard(min_val.device());
  return launch_qparams(min_val.contiguous(), max_val.contiguous(), symmetric, quant_min, quant_max,
                        c10::cuda::getCurrentCUDAStream(min_val.get_device()));
}

}  // namespace

TORCH_LIBRARY_IMPL(torchquant, CUDA, m) {
  m.impl("quantize", quantize);
  m.impl("dequantize", dequantize);
  m.impl("choose_qparams", choose_qparams);
  m.impl("qparams_from_min_max", qparams_from_min_max);
}

}  // namespace torchquant::ops
