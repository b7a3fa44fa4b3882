// CUDA half of quantized_conv.
#include <torch/library.h>

#include "ops/cuda_call.h"
#include "ops/integer_conv.h"
#include "ops/integer_conv_cuda.h"
#include "ops/quantized_common.h"

namespace torchquant::ops {
namespace {

constexpr const char* kOp = "quantized_conv";

at::Tensor quantized_conv(const at::Tensor& x, const at::Tensor& weight, const at::Tensor& multiplier,
                          const at::Tensor& bias, const std::optional<at::Tensor>& residual,
                          at::IntArrayRef kernel_size, at::IntArrayRef stride, at::IntArrayRef padding,
                          at::IntArrayRef dilation, int64_t groups, bool transposed, at::IntArrayRef output_padding,
                          int64_t x_zero_point, int64_t weight_bits, int64_t weight_quant_min,
                          double residual_multiplier, int64_t residual_zero_point, std::string_view activation,
                          at::ArrayRef<double> activation_args, double output_scale, int64_t output_zero_point,
                          int64_t output_quant_min, int64_t output_quant_max, at::ScalarType output_dtype) {
  const at::Tensor out = check_and_allocate<&quantized_conv>(
      "torchquant::quantized_conv", x, weight, multiplier, bias, residual, kernel_size, stride, padding, dilation,
      groups, transposed, output_padding, x_zero_point, weight_bits, weight_quant_min, residual_multiplier,
      residual_zero_point, activation, activation_args, output_scale, output_zero_point, output_quant_min,
      output_quant_max, output_dtype);
  if (out.numel() == 0) return out;
  std::optional<at::Tensor> dense_residual;
  if (residual.has_value()) dense_residual = to_channels_last(*residual);
  const ConvParams params{kernel_size, stride, padding, dilation, groups, transposed, output_padding};
  run_integer_conv(
      {kOp, conv_spec(x.size(1), out.size(1), params), x.size(0), image_layout(x), image_layout(out),
       to_channels_last(x), x_zero_point, weight, weight_bits, weight_quant_min, multiplier, bias, dense_residual,
       residual_spec(kOp, residual, x, out.sym_sizes(), residual_multiplier, residual_zero_point),
       output_spec(kOp, {activation, activation_args, output_scale, output_zero_point, output_quant_min,
                         output_quant_max, output_dtype})},
      out);
  return out;
}

}  // namespace

TORCH_LIBRARY_IMPL(torchquant, CUDA, m) { m.impl("quantized_conv", quantized_conv); }

}  // namespace torchquant::ops
