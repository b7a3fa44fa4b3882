// CUDA half of quantized_linear: a 1x1 convolution over an image of one row.
#include <torch/library.h>

#include "ops/cuda_call.h"
#include "ops/integer_conv_cuda.h"
#include "ops/quantized_common.h"

namespace torchquant::ops {
namespace {

constexpr const char* kOp = "quantized_linear";

at::Tensor quantized_linear(const at::Tensor& x, const at::Tensor& weight, const at::Tensor& multiplier,
                            const at::Tensor& bias, const std::optional<at::Tensor>& residual, int64_t x_zero_point,
                            int64_t weight_bits, int64_t weight_quant_min, double residual_multiplier,
                            int64_t residual_zero_point, std::string_view activation,
                            at::ArrayRef<double> activation_args, double output_scale, int64_t output_zero_point,
                            int64_t output_quant_min, int64_t output_quant_max, at::ScalarType output_dtype) {
  const at::Tensor out = check_and_allocate<&quantized_linear>(
      "torchquant::quantized_linear", x, weight, multiplier, bias, residual, x_zero_point, weight_bits,
      weight_quant_min, residual_multiplier, residual_zero_point, activation, activation_args, output_scale,
      output_zero_point, output_quant_min, output_quant_max, output_dtype);
  if (out.numel() == 0) return out;
  const int64_t depth = x.size(-1);
  const int64_t channels = out.size(-1);
  const int64_t rows = out.numel() / channels;
  std::optional<at::Tensor> dense_residual;
  if (residual.has_value()) dense_residual = residual->contiguous();
  run_integer_conv({kOp,
                    {depth, channels},
                    1,
                    kernels::dense_image(1, rows, depth),
                    kernels::dense_image(1, rows, channels),
                    x.contiguous(),
                    x_zero_point,
                    weight,
                    weight_bits,
                    weight_quant_min,
                    multiplier,
                    bias,
                    dense_residual,
                    residual_spec(kOp, residual, x, out.sym_sizes(), residual_multiplier, residual_zero_point),
                    output_spec(kOp, {activation, activation_args, output_scale, output_zero_point, output_quant_min,
                                      output_quant_max, output_dtype})},
                   out);
  return out;
}

}  // namespace

TORCH_LIBRARY_IMPL(torchquant, CUDA, m) { m.impl("quantized_linear", quantized_linear); }

}  // namespace torchquant::ops
