// CUDA half of quantized_matmul.
#include <ATen/ops/empty_like.h>
#include <torch/library.h>

#include "kernels/cuda/integer_matmul.h"
#include "ops/cuda_call.h"
#include "ops/quantized_common.h"
#include "ops/quantized_matmul.h"

namespace torchquant::ops {
namespace {

at::Tensor quantized_matmul(const at::Tensor& a, const at::Tensor& b, double multiplier, int64_t a_zero_point,
                            int64_t b_zero_point, std::string_view activation, at::ArrayRef<double> activation_args,
                            double output_scale, int64_t output_zero_point, int64_t output_quant_min,
                            int64_t output_quant_max, at::ScalarType output_dtype) {
  const at::Tensor out = check_and_allocate<&quantized_matmul>(
      "torchquant::quantized_matmul", a, b, multiplier, a_zero_point, b_zero_point, activation, activation_args,
      output_scale, output_zero_point, output_quant_min, output_quant_max, output_dtype);
  if (out.numel() == 0) return out;
  const c10::cuda::CUDAGuard guard(a.device());
  const at::ScalarType stored_type = compute_dtype(output_dtype);
  const at::Tensor stored = stored_type == output_dtype ? out : at::empty_like(out, out.options().dtype(stored_type));
  const at::Tensor left = matmul_reads_a(a) ? a : a.contiguous();
  const at::Tensor right = matmul_reads_b(b) ? b : b.contiguous();
  kernels::MatmulArgs args = matmul_args(left, right, stored);
  args.a = operand(left, a_zero_point);
  args.b = operand(right, b_zero_point);
  args.multiplier = static_cast<float>(multiplier);
  args.output = output_spec("quantized_matmul", {activation, activation_args, output_scale, output_zero_point,
                                                 output_quant_min, output_quant_max, output_dtype});
  args.out = stored.mutable_data_ptr();
  C10_CUDA_CHECK(kernels::cuda::integer_matmul(args, c10::cuda::getCurrentCUDAStream(a.get_device())));
  return stored.to(output_dtype);
}

}  // namespace

TORCH_LIBRARY_IMPL(torchquant, CUDA, m) { m.impl("quantized_matmul", quantized_matmul); }

}  // namespace torchquant::ops
