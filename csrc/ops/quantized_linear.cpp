// torchquant::quantized_linear: integer matrix product with bias, residual, activation and requantization fused in.
// Emitted by the converter for static int8 (and packed int4) layers.
#include <ATen/ops/empty.h>

#include "ops/integer_conv.h"
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
  check_codes(kOp, "x", x);
  check_zero_point(kOp, "x_zero_point", x_zero_point, x.scalar_type());
  const auto sizes = check_linear(kOp, x, weight, weight_bits, weight_quant_min);
  check_depth(kOp, x.sym_size(-1), weight_quant_min);
  check_per_channel(kOp, "multiplier", multiplier, sizes.back());
  check_per_channel(kOp, "bias", bias, sizes.back());
  check_same_device(kOp, "multiplier", multiplier, x);
  check_same_device(kOp, "bias", bias, x);
  const auto output = output_spec(kOp, {activation, activation_args, output_scale, output_zero_point, output_quant_min,
                                        output_quant_max, output_dtype});
  auto fused_residual = residual_spec(kOp, residual, x, sizes, residual_multiplier, residual_zero_point);

  if (!x.is_cpu()) return at::empty_symint(sizes, x.options().dtype(output_dtype));  // Meta, which CUDA calls too
  const at::Tensor out = at::empty_symint(sizes, x.options().dtype(compute_dtype(output_dtype)));
  if (out.numel() == 0) return out.to(output_dtype);

  const int64_t depth = x.size(-1);
  const int64_t channels = out.size(-1);
  const int64_t rows = out.numel() / channels;
  const at::Tensor dense_x = x.contiguous();
  const at::Tensor dense_multiplier = multiplier.contiguous();
  const at::Tensor dense_bias = bias.contiguous();
  at::Tensor dense_residual;
  if (residual.has_value()) dense_residual = residual->contiguous();
  const kernels::ImageLayout image = kernels::dense_image(1, rows, depth);
  kernels::ConvProblem problem{
      1,
      image,
      kernels::dense_image(1, rows, channels),
      std::nullopt,
      element_type(x.scalar_type()),
      static_cast<int32_t>(x_zero_point),
      {dense_multiplier.const_data_ptr<float>(), dense_bias.const_data_ptr<float>(), fused_residual, output},
      plan_threads()};
  if (residual.has_value()) problem.residual = problem.out;
  const auto packed = packed_conv(weight, {depth, channels}, weight_bits, weight_quant_min);
  const auto plan = plan_bordered(*packed, problem, channels, [&] {
    check_values(kOp, "multiplier", multiplier, /*positive=*/false);
    check_values(kOp, "bias", bias, /*positive=*/false);
  });
  const BorderedInput input(dense_x, image, 1, plan->input_border(), x_zero_point);
  run_plan(*plan, {input.data(), out.mutable_data_ptr(),
                   residual.has_value() ? dense_residual.const_data_ptr() : nullptr, nullptr});
  return out.to(output_dtype);
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(torchquant, m) {
  define(m, std::string("quantized_linear(Tensor x, Tensor weight, Tensor multiplier, Tensor bias, "
                        "Tensor? residual=None, *, int x_zero_point, int weight_bits=8, int weight_quant_min=-127, ") +
                kResidualSchema + kOutputSchema + ") -> Tensor");
}
TORCH_LIBRARY_IMPL(torchquant, CPU, m) { m.impl("quantized_linear", quantized_linear); }
TORCH_LIBRARY_IMPL(torchquant, Meta, m) { m.impl("quantized_linear", quantized_linear); }

}  // namespace torchquant::ops
