// CUDA half of quantized_add, quantized_mul and quantized_lookup.
#include <ATen/ops/empty_like.h>
#include <torch/library.h>

#include "kernels/cuda/pointwise.h"
#include "ops/cuda_call.h"
#include "ops/quantized_common.h"
#include "ops/repeated_operand.h"

namespace torchquant::ops {
namespace {

cudaStream_t stream_of(const at::Tensor& x) { return c10::cuda::getCurrentCUDAStream(x.get_device()); }

RepeatedOperand broadcast(const at::Tensor& x, const at::Tensor& out) {
  return repeated_operand(x, out, kernels::cuda::kRepeatedRun);
}

// The output that the kernel writes: fp32 where the op's is a half type.
at::Tensor kernel_output(const at::Tensor& out) {
  const at::ScalarType dtype = compute_dtype(out.scalar_type());
  return dtype == out.scalar_type() ? out : at::empty_like(out, out.options().dtype(dtype));
}

at::Tensor quantized_add(const at::Tensor& a, const at::Tensor& b, double a_multiplier, int64_t a_zero_point,
                         double b_multiplier, int64_t b_zero_point, std::string_view activation,
                         at::ArrayRef<double> activation_args, double output_scale, int64_t output_zero_point,
                         int64_t output_quant_min, int64_t output_quant_max, at::ScalarType output_dtype) {
  const at::Tensor out = check_and_allocate<&quantized_add>(
      "torchquant::quantized_add", a, b, a_multiplier, a_zero_point, b_multiplier, b_zero_point, activation,
      activation_args, output_scale, output_zero_point, output_quant_min, output_quant_max, output_dtype);
  const auto output = output_spec("quantized_add", {activation, activation_args, output_scale, output_zero_point,
                                                    output_quant_min, output_quant_max, output_dtype});
  const c10::cuda::CUDAGuard guard(a.device());
  const at::Tensor written = kernel_output(out);
  const RepeatedOperand left = broadcast(a, out), right = broadcast(b, out);
  const kernels::AddArgs args{operand(left.dense, a_zero_point),
                              operand(right.dense, b_zero_point),
                              static_cast<float>(a_multiplier),
                              static_cast<float>(b_multiplier),
                              output,
                              written.mutable_data_ptr()};
  C10_CUDA_CHECK(kernels::cuda::add(args, left.repeat, right.repeat, out.numel(), stream_of(a)));
  return written.to(output_dtype);
}

at::Tensor quantized_mul(const at::Tensor& a, const at::Tensor& b, double multiplier, int64_t a_zero_point,
                         int64_t b_zero_point, std::string_view activation, at::ArrayRef<double> activation_args,
                         double output_scale, int64_t output_zero_point, int64_t output_quant_min,
                         int64_t output_quant_max, at::ScalarType output_dtype) {
  const at::Tensor out = check_and_allocate<&quantized_mul>(
      "torchquant::quantized_mul", a, b, multiplier, a_zero_point, b_zero_point, activation, activation_args,
      output_scale, output_zero_point, output_quant_min, output_quant_max, output_dtype);
  const auto output = output_spec("quantized_mul", {activation, activation_args, output_scale, output_zero_point,
                                                    output_quant_min, output_quant_max, output_dtype});
  const c10::cuda::CUDAGuard guard(a.device());
  const at::Tensor written = kernel_output(out);
  const RepeatedOperand left = broadcast(a, out), right = broadcast(b, out);
  const kernels::MulArgs args{operand(left.dense, a_zero_point), operand(right.dense, b_zero_point),
                              static_cast<float>(multiplier), output, written.mutable_data_ptr()};
  C10_CUDA_CHECK(kernels::cuda::mul(args, left.repeat, right.repeat, out.numel(), stream_of(a)));
  return written.to(output_dtype);
}

at::Tensor quantized_lookup(const at::Tensor& x, const at::Tensor& table, int64_t table_min,
                            at::ScalarType output_dtype) {
  const at::Tensor out =
      check_and_allocate<&quantized_lookup>("torchquant::quantized_lookup", x, table, table_min, output_dtype);
  const c10::cuda::CUDAGuard guard(x.device());
  const at::Tensor dense_x = match_layout(x, out);
  const at::Tensor dense_table = table.contiguous();
  const kernels::LookupArgs args{dense_x.const_data_ptr(), element_type(x.scalar_type()), dense_table.const_data_ptr(),
                                 static_cast<int64_t>(dense_table.element_size()), out.mutable_data_ptr()};
  C10_CUDA_CHECK(kernels::cuda::lookup(args, out.numel(), stream_of(x)));
  return out;
}

}  // namespace

TORCH_LIBRARY_IMPL(torchquant, CUDA, m) {
  m.impl("quantized_add", quantized_add);
  m.impl("quantized_mul", quantized_mul);
  m.impl("quantized_lookup", quantized_lookup);
}

}  // namespace torchquant::ops
