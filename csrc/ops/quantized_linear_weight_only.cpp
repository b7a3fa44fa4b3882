// torchquant::quantized_linear_weight_only: float input, int8 or int4 weights, per channel or in groups along K.
// Emitted by the converter for weight-only layers. Sums in fp32: a named exception to bit-equality (docs/numerics.md).
#include <ATen/ops/empty.h>

#include "ops/quantized_common.h"

namespace torchquant::ops {
namespace {

constexpr const char* kOp = "quantized_linear_weight_only";

at::Tensor quantized_linear_weight_only(const at::Tensor& x, const at::Tensor& weight, const at::Tensor& weight_scale,
                                        const std::optional<at::Tensor>& weight_zero_point,
                                        const std::optional<at::Tensor>& bias, int64_t weight_bits,
                                        int64_t weight_quant_min, std::optional<int64_t> group_size,
                                        std::string_view activation, at::ArrayRef<double> activation_args) {
  check_float(kOp, "x", x);
  const auto sizes = check_linear(kOp, x, weight, weight_bits, weight_quant_min);
  check_grouped_scale(kOp, weight_scale, weight_zero_point, sizes.back(), x.sym_size(-1), group_size);
  check_same_device(kOp, "weight_scale", weight_scale, x);
  if (bias.has_value()) {
    check_per_channel(kOp, "bias", *bias, sizes.back());
    check_same_device(kOp, "bias", *bias, x);
  }
  const auto fused_activation = activation_spec(kOp, activation, activation_args, 1.0);

  if (x.is_meta()) return at::empty_symint(sizes, x.options());
  check_values(kOp, "weight_scale", weight_scale, /*positive=*/true);
  const at::Tensor out = at::empty_symint(sizes, x.options().dtype(at::kFloat));
  if (out.numel() == 0) return out.to(x.scalar_type());

  const int64_t depth = x.size(-1);
  const int64_t channels = out.size(-1);
  const int64_t rows = out.numel() / channels;
  const at::Tensor dense_x = x.to(at::kFloat).contiguous();
  const at::Tensor dense_weight = weight.contiguous();
  const at::Tensor dense_scale = weight_scale.contiguous();
  const at::Tensor dense_zero_point = float_or_undefined(weight_zero_point);
  const at::Tensor dense_bias = float_or_undefined(bias);
  const kernels::LinearWeightOnlyArgs args{
      dense_x.const_data_ptr<float>(),
      rows,
      {dense_weight.const_data_ptr(), depth, static_cast<int32_t>(weight_bits), static_cast<int32_t>(weight_quant_min)},
      channels,
      dense_scale.const_data_ptr<float>(),
      float_data_or_null(dense_zero_point),
      group_size.value_or(depth),
      float_data_or_null(dense_bias),
      fused_activation,
      out.mutable_data_ptr<float>()};
  parallel_range(channels, depth * (rows + 1),
                 [&](kernels::IndexRange range) { kernels::quantized_kernels().linear_weight_only(args, range); });
  return out.to(x.scalar_type());
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(torchquant, m) {
  define(m,
         "quantized_linear_weight_only(Tensor x, Tensor weight, Tensor weight_scale, Tensor? weight_zero_point=None, "
         "Tensor? bias=None, *, int weight_bits=8, int weight_quant_min=-127, int? group_size=None, "
         "str activation=\"none\", float[] activation_args=[]) -> Tensor");
}
TORCH_LIBRARY_IMPL(torchquant, CPU, m) { m.impl("quantized_linear_weight_only", quantized_linear_weight_only); }
TORCH_LIBRARY_IMPL(torchquant, Meta, m) { m.impl("quantized_linear_weight_only", quantized_linear_weight_only); }

}  // namespace torchquant::ops
