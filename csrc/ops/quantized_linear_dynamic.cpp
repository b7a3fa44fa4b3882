// torchquant::quantized_linear_dynamic: quantizes each row of a float input (symmetric, absmax / 127), multiplies with
// integer weights and returns floats. Emitted by the converter for dynamic layers, LSTM and GRU.
#include <ATen/ops/empty.h>

#include "ops/quantized_common.h"

namespace torchquant::ops {
namespace {

constexpr const char* kOp = "quantized_linear_dynamic";

at::Tensor quantized_linear_dynamic(const at::Tensor& x, const at::Tensor& weight, const at::Tensor& weight_scale,
                                    const std::optional<at::Tensor>& bias, int64_t weight_bits,
                                    int64_t weight_quant_min, std::string_view activation,
                                    at::ArrayRef<double> activation_args) {
  check_float(kOp, "x", x);
  const auto sizes = check_linear(kOp, x, weight, weight_bits, weight_quant_min);
  check_depth(kOp, x.sym_size(-1));
  check_per_channel(kOp, "weight_scale", weight_scale, sizes.back());
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
  const at::Tensor dense_x = x.to(at::kFloat).contiguous();
  const at::Tensor codes = int8_weight(weight, channels, depth, weight_bits, weight_quant_min);
  const at::Tensor dense_scale = weight_scale.contiguous();
  const at::Tensor dense_bias = float_or_undefined(bias);
  const kernels::LinearDynamicArgs args{dense_x.const_data_ptr<float>(),
                                        depth,
                                        codes.const_data_ptr<int8_t>(),
                                        channels,
                                        dense_scale.const_data_ptr<float>(),
                                        float_data_or_null(dense_bias),
                                        fused_activation,
                                        out.mutable_data_ptr<float>()};
  parallel_matrix(out.numel() / channels, channels, depth, [&](kernels::IndexRange rows, kernels::IndexRange columns) {
    kernels::quantized_kernels().linear_dynamic(args, rows, columns);
  });
  return out.to(x.scalar_type());
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(torchquant, m) {
  define(
      m,
      "quantized_linear_dynamic(Tensor x, Tensor weight, Tensor weight_scale, Tensor? bias=None, *, "
      "int weight_bits=8, int weight_quant_min=-127, str activation=\"none\", float[] activation_args=[]) -> Tensor");
}
TORCH_LIBRARY_IMPL(torchquant, CPU, m) { m.impl("quantized_linear_dynamic", quantized_linear_dynamic); }
TORCH_LIBRARY_IMPL(torchquant, Meta, m) { m.impl("quantized_linear_dynamic", quantized_linear_dynamic); }

}  // namespace torchquant::ops
