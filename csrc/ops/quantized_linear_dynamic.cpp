// torchquant::quantized_linear_dynamic: quantizes each row of a float input (symmetric, absmax / 127), multiplies with
// integer weights and returns floats. Emitted by the converter for dynamic layers, LSTM and GRU.
#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>

#include "kernels/quantize_rows.h"
#include "ops/integer_conv.h"
#include "ops/quantized_common.h"

namespace torchquant::ops {
namespace {

constexpr const char* kOp = "quantized_linear_dynamic";

// Bytes from one row of codes to the next: an odd number of cache lines. A tile reads many rows side by side, and rows
// that lie a large power of two apart push each other out of L1.
int64_t codes_pitch(int64_t depth) { return ((depth + 63) / 64 | 1) * 64; }

// Codes of every row and their scales.
void quantize_rows(const at::Tensor& x, int64_t rows, int64_t depth, const at::Tensor& codes,
                   const at::Tensor& row_scale) {
  const kernels::QuantizeRow quantize = kernels::quantize_row(kernels::selected_isa());
  const float* data = x.const_data_ptr<float>();
  uint8_t* target = codes.mutable_data_ptr<uint8_t>();
  float* scales = row_scale.mutable_data_ptr<float>();
  const int64_t pitch = codes_pitch(depth);
  parallel_range(rows, depth, [&](kernels::IndexRange range) {
    for (int64_t r = range.begin; r < range.end; ++r) scales[r] = quantize(data + r * depth, depth, target + r * pitch);
  });
}

at::Tensor quantized_linear_dynamic(const at::Tensor& x, const at::Tensor& weight, const at::Tensor& weight_scale,
                                    const std::optional<at::Tensor>& bias, int64_t weight_bits,
                                    int64_t weight_quant_min, std::string_view activation,
                                    at::ArrayRef<double> activation_args) {
  check_float(kOp, "x", x);
  const auto sizes = check_linear(kOp, x, weight, weight_bits, weight_quant_min);
  check_depth(kOp, x.sym_size(-1), weight_quant_min);
  check_per_channel(kOp, "weight_scale", weight_scale, sizes.back());
  check_same_device(kOp, "weight_scale", weight_scale, x);
  if (bias.has_value()) {
    check_per_channel(kOp, "bias", *bias, sizes.back());
    check_same_device(kOp, "bias", *bias, x);
  }
  const auto fused_activation = activation_spec(kOp, activation, activation_args, 1.0);

  if (!x.is_cpu()) return at::empty_symint(sizes, x.options());  // Meta, which the CUDA kernel calls too
  const at::Tensor out = at::empty_symint(sizes, x.options().dtype(at::kFloat));
  if (out.numel() == 0) return out.to(x.scalar_type());

  const int64_t depth = x.size(-1);
  const int64_t channels = out.size(-1);
  const int64_t rows = out.numel() / channels;
  const at::Tensor dense_x = x.to(at::kFloat).contiguous();
  const at::Tensor dense_scale = weight_scale.contiguous();
  const at::Tensor dense_bias =
      bias.has_value() ? float_or_undefined(bias) : at::zeros({channels}, dense_scale.options());
  const kernels::ConvProblem problem{1,
                                     kernels::dense_image(1, rows, codes_pitch(depth)),
                                     kernels::dense_image(1, rows, channels),
                                     std::nullopt,
                                     kernels::ElementType::kUInt8,
                                     kernels::kDynamicZeroPoint,
                                     {dense_scale.const_data_ptr<float>(),
                                      dense_bias.const_data_ptr<float>(),
                                      {},
                                      {kernels::ElementType::kFloat32, 0.0f, {}, fused_activation}},
                                     plan_threads()};
  const auto packed = packed_conv(weight, {depth, channels}, weight_bits, weight_quant_min);
  const auto plan =
      packed->plan(problem, channels, [&] { check_values(kOp, "weight_scale", weight_scale, /*positive=*/true); });
  const at::Tensor codes =
      at::empty({rows * codes_pitch(depth) + plan->input_border().tail_bytes}, x.options().dtype(at::kByte));
  const at::Tensor row_scale = at::empty({rows}, x.options().dtype(at::kFloat));
  quantize_rows(dense_x, rows, depth, codes, row_scale);
  run_plan(*plan, {codes.const_data_ptr(), out.mutable_data_ptr(), nullptr, row_scale.const_data_ptr<float>()});
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
