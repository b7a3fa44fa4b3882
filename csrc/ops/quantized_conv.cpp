// torchquant::quantized_conv: convolution on integer codes with bias, residual, activation and requantization fused in.
// Emitted by the converter. 1-d and 2-d (len(kernel_size) tells), forward and transposed.
#include <ATen/ops/empty.h>

#include "ops/integer_conv.h"
#include "ops/quantized_common.h"

namespace torchquant::ops {
namespace {

constexpr const char* kOp = "quantized_conv";

void check_list(const char* name, at::IntArrayRef values, size_t length, int64_t at_least) {
  TORCH_CHECK(values.size() == length, kOp, ": ", name, " must have ", length,
              " values, one per entry of kernel_size, got ", values);
  for (int64_t value : values) {
    TORCH_CHECK(value >= at_least, kOp, ": ", name, " must be at least ", at_least, ", got ", values);
  }
}

void check_params(const at::Tensor& x, const ConvParams& p) {
  const size_t length = p.kernel_size.size();
  TORCH_CHECK(length == 1 || length == 2, kOp, ": kernel_size must have 1 or 2 values, got ", p.kernel_size);
  check_list("kernel_size", p.kernel_size, length, 1);
  check_list("stride", p.stride, length, 1);
  check_list("padding", p.padding, length, 0);
  check_list("dilation", p.dilation, length, 1);
  check_list("output_padding", p.output_padding, length, 0);
  TORCH_CHECK(x.dim() == static_cast<int64_t>(length) + 2, kOp, ": x must have ", length + 2,
              " dimensions (batch, channels, ", length == 1 ? "length" : "height, width", "), got shape ",
              x.sym_sizes());
  TORCH_CHECK(p.groups >= 1, kOp, ": groups must be at least 1, got ", p.groups);
  for (size_t i = 0; i < length; ++i) {
    const bool allowed =
        p.transposed ? p.output_padding[i] < std::max(p.stride[i], p.dilation[i]) : p.output_padding[i] == 0;
    TORCH_CHECK(allowed, kOp, ": output_padding must be ",
                p.transposed ? "smaller than stride or dilation" : "0 unless transposed", ", got ", p.output_padding);
  }
}

c10::SymInt kernel_elements(const ConvParams& p) {
  c10::SymInt product = 1;
  for (int64_t size : p.kernel_size) product *= size;
  return product;
}

// Whoever runs a model on images of another kind ends here: the weight fits but for the channels of x, so x is wrong.
void check_channels(const at::Tensor& x, const at::Tensor& weight, const c10::SymInt& out_channels,
                    const ConvParams& p) {
  const c10::SymIntArrayRef sizes = weight.sym_sizes();
  if (sizes.size() != p.kernel_size.size() + 2) return;
  const bool fits = p.transposed ? sizes[1] * p.groups == out_channels : sizes[0] == out_channels;
  if (!fits || !std::equal(p.kernel_size.begin(), p.kernel_size.end(), sizes.begin() + 2)) return;
  const c10::SymInt channels = p.transposed ? sizes[0] : sizes[1] * p.groups;
  TORCH_CHECK(x.sym_size(1) == channels, kOp, ": x must have ", channels, " channels (its second dimension) for ",
              p.transposed ? "transposed " : "", "weight of shape ", sizes, " and groups ", p.groups,
              ", got x of shape ", x.sym_sizes());
}

// [O, I/g, *k], transposed [I, O/g, *k]; packed 4-bit: the same with everything after the first dimension flattened.
void check_weight(const at::Tensor& x, const at::Tensor& weight, const c10::SymInt& out_channels, const ConvParams& p,
                  int64_t bits, int64_t quant_min) {
  check_weight_bits(kOp, weight, bits, quant_min);
  TORCH_CHECK(out_channels % p.groups == 0, kOp, ": groups must divide the ", out_channels,
              " output channels (the length of multiplier), got ", p.groups);
  if (bits == 8) check_channels(x, weight, out_channels, p);
  const c10::SymInt in_channels = x.sym_size(1);
  TORCH_CHECK(in_channels % p.groups == 0, kOp, ": groups must divide the ", in_channels, " channels of x, got ",
              p.groups);
  const c10::SymInt rows = p.transposed ? in_channels : out_channels;
  const c10::SymInt columns = (p.transposed ? out_channels : in_channels) / p.groups;
  if (bits == 4) {
    check_shape(kOp, "weight", weight, {rows, stored_columns(columns * kernel_elements(p), 4)});
    return;
  }
  std::vector<c10::SymInt> expected{rows, columns};
  expected.insert(expected.end(), p.kernel_size.begin(), p.kernel_size.end());
  check_shape(kOp, "weight", weight, expected);
}

c10::SymInt output_size(const c10::SymInt& in, const ConvParams& p, size_t i) {
  const int64_t reach = p.dilation[i] * (p.kernel_size[i] - 1);
  if (p.transposed) return (in - 1) * p.stride[i] - 2 * p.padding[i] + reach + p.output_padding[i] + 1;
  return (in + 2 * p.padding[i] - reach - 1) / p.stride[i] + 1;
}

std::vector<c10::SymInt> output_sizes(const at::Tensor& x, const c10::SymInt& out_channels, const ConvParams& p) {
  std::vector<c10::SymInt> sizes{x.sym_size(0), out_channels};
  for (size_t i = 0; i < p.kernel_size.size(); ++i) {
    const c10::SymInt in = x.sym_size(2 + static_cast<int64_t>(i));
    // Tested before dividing, which rounds towards zero.
    const bool fits = p.transposed || in + 2 * p.padding[i] > p.dilation[i] * (p.kernel_size[i] - 1);
    const c10::SymInt out = output_size(in, p, i);
    TORCH_CHECK(fits && out >= 1, kOp, ": the kernel must fit into x with its padding, got x ", x.sym_sizes(),
                ", kernel_size ", p.kernel_size, ", padding ", p.padding, ", dilation ", p.dilation);
    sizes.push_back(out);
  }
  return sizes;
}

at::Tensor quantized_conv(const at::Tensor& x, const at::Tensor& weight, const at::Tensor& multiplier,
                          const at::Tensor& bias, const std::optional<at::Tensor>& residual,
                          at::IntArrayRef kernel_size, at::IntArrayRef stride, at::IntArrayRef padding,
                          at::IntArrayRef dilation, int64_t groups, bool transposed, at::IntArrayRef output_padding,
                          int64_t x_zero_point, int64_t weight_bits, int64_t weight_quant_min,
                          double residual_multiplier, int64_t residual_zero_point, std::string_view activation,
                          at::ArrayRef<double> activation_args, double output_scale, int64_t output_zero_point,
                          int64_t output_quant_min, int64_t output_quant_max, at::ScalarType output_dtype) {
  const ConvParams p{kernel_size, stride, padding, dilation, groups, transposed, output_padding};
  check_codes(kOp, "x", x);
  check_params(x, p);
  check_zero_point(kOp, "x_zero_point", x_zero_point, x.scalar_type());
  const c10::SymInt out_channels = multiplier.sym_numel();
  check_per_channel(kOp, "multiplier", multiplier, out_channels);
  check_per_channel(kOp, "bias", bias, out_channels);
  check_weight(x, weight, out_channels, p, weight_bits, weight_quant_min);
  check_depth(kOp, x.sym_size(1) / groups * kernel_elements(p), weight_quant_min);
  for (const auto& [name, tensor] : {std::pair{"weight", &weight}, {"multiplier", &multiplier}, {"bias", &bias}}) {
    check_same_device(kOp, name, *tensor, x);
  }
  const auto output = output_spec(kOp, {activation, activation_args, output_scale, output_zero_point, output_quant_min,
                                        output_quant_max, output_dtype});
  const auto sizes = output_sizes(x, out_channels, p);
  auto fused_residual = residual_spec(kOp, residual, x, sizes, residual_multiplier, residual_zero_point);

  if (!x.is_cpu()) return empty_channels_last(sizes, x.options().dtype(output_dtype));  // Meta, which CUDA calls too
  const at::Tensor out = empty_channels_last(sizes, x.options().dtype(compute_dtype(output_dtype)));
  if (out.numel() == 0) return out.to(output_dtype);

  const at::Tensor dense_x = to_channels_last(x);
  const at::Tensor dense_multiplier = multiplier.contiguous();
  const at::Tensor dense_bias = bias.contiguous();
  at::Tensor dense_residual;
  if (residual.has_value()) dense_residual = to_channels_last(*residual);
  const kernels::ImageLayout image = image_layout(x);
  kernels::ConvProblem problem{
      x.size(0),
      image,
      image_layout(out),
      std::nullopt,
      element_type(x.scalar_type()),
      static_cast<int32_t>(x_zero_point),
      {dense_multiplier.const_data_ptr<float>(), dense_bias.const_data_ptr<float>(), fused_residual, output},
      plan_threads()};
  if (residual.has_value()) problem.residual = problem.out;
  const auto packed = packed_conv(weight, conv_spec(x.size(1), out.size(1), p), weight_bits, weight_quant_min);
  const auto plan = plan_bordered(*packed, problem, out.size(1), [&] {
    check_values(kOp, "multiplier", multiplier, /*positive=*/false);
    check_values(kOp, "bias", bias, /*positive=*/false);
  });
  const BorderedInput input(dense_x, image, x.size(0), plan->input_border(), x_zero_point);
  run_plan(*plan, {input.data(), out.mutable_data_ptr(),
                   residual.has_value() ? dense_residual.const_data_ptr() : nullptr, nullptr});
  return out.to(output_dtype);
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(torchquant, m) {
  define(m,
         std::string("quantized_conv(Tensor x, Tensor weight, Tensor multiplier, Tensor bias, Tensor? residual=None, "
                     "*, int[] kernel_size, int[] stride, int[] padding, int[] dilation, int groups=1, "
                     "bool transposed=False, int[] output_padding, int x_zero_point, int weight_bits=8, "
                     "int weight_quant_min=-127, ") +
             kResidualSchema + kOutputSchema + ") -> Tensor");
}
TORCH_LIBRARY_IMPL(torchquant, CPU, m) { m.impl("quantized_conv", quantized_conv); }
TORCH_LIBRARY_IMPL(torchquant, Meta, m) { m.impl("quantized_conv", quantized_conv); }

}  // namespace torchquant::ops
