// Shared checks and layouts of the integer ops; see quantized_common.h.
#include "ops/quantized_common.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/empty_strided.h>

#include <cmath>
#include <limits>
#include <utility>

#include "numerics/int4.h"

namespace torchquant::ops {
namespace {

using numerics::Activation;

constexpr std::pair<std::string_view, Activation> kActivations[] = {
    {"none", Activation::kNone},       {"relu", Activation::kClamp},          {"relu6", Activation::kClamp},
    {"hardtanh", Activation::kClamp},  {"hardswish", Activation::kHardswish}, {"hardsigmoid", Activation::kHardsigmoid},
    {"silu", Activation::kSilu},       {"gelu", Activation::kGelu},           {"gelu_tanh", Activation::kGeluTanh},
    {"sigmoid", Activation::kSigmoid}, {"tanh", Activation::kTanh},
};

Activation find_activation(const char* op, std::string_view activation) {
  for (const auto& [name, kind] : kActivations) {
    if (name == activation) return kind;
  }
  TORCH_CHECK(false, op, ": activation must be one of ", activation_names(), ", got '", activation, "'");
}

bool is_float_type(at::ScalarType type) { return type == at::kFloat || type == at::kBFloat16 || type == at::kHalf; }

int64_t smallest_code(at::ScalarType type) { return type == at::kByte ? 0 : -128; }
int64_t largest_code(at::ScalarType type) { return type == at::kByte ? 255 : 127; }

}  // namespace

std::string activation_names() {
  std::string names;
  for (const auto& [name, kind] : kActivations) names += (names.empty() ? "" : ", ") + std::string(name);
  return names;
}

kernels::ActivationSpec activation_spec(const char* op, std::string_view activation,
                                        at::ArrayRef<double> activation_args, double output_scale) {
  const Activation kind = find_activation(op, activation);
  const auto scale = static_cast<float>(output_scale);
  kernels::ActivationSpec spec{kind, {0.0f, 0.0f}, scale, 1.0f / scale};
  if (kind != Activation::kClamp) {
    TORCH_CHECK(activation_args.empty(), op, ": activation_args must be empty for activation '", activation, "', got ",
                activation_args);
    return spec;
  }
  TORCH_CHECK(activation_args.size() == 2 && activation_args[0] <= activation_args[1], op,
              ": activation_args must be [lo, hi] with lo <= hi, divided by the output scale, for activation '",
              activation, "', got ", activation_args);
  spec.clamp = {static_cast<float>(activation_args[0]), static_cast<float>(activation_args[1])};
  return spec;
}

kernels::OutputSpec output_spec(const char* op, const OutputArgs& args) {
  check_output_dtype(op, args.dtype);
  TORCH_CHECK(numerics::valid_scale(static_cast<float>(args.scale)), op,
              ": output_scale must be finite and > 0, with a finite reciprocal, got ", args.scale);
  const auto activation = activation_spec(op, args.activation, args.activation_args, args.scale);
  const kernels::QRange range{static_cast<float>(args.quant_min), static_cast<float>(args.quant_max)};
  if (!is_code_type(args.dtype)) {
    TORCH_CHECK(args.scale == 1.0, op, ": output_scale must be 1 for a floating output_dtype, got ", args.scale);
    return {kernels::ElementType::kFloat32, 0.0f, range, activation};
  }
  TORCH_CHECK(args.quant_min < args.quant_max && args.quant_min >= smallest_code(args.dtype) &&
                  args.quant_max <= largest_code(args.dtype),
              op, ": output_quant_min and output_quant_max must be an increasing range inside [",
              smallest_code(args.dtype), ", ", largest_code(args.dtype), "] for output_dtype ", dtype_name(args.dtype),
              ", got [", args.quant_min, ", ", args.quant_max, "]");
  TORCH_CHECK(args.zero_point >= args.quant_min && args.zero_point <= args.quant_max, op,
              ": output_zero_point must lie in [output_quant_min, output_quant_max] = [", args.quant_min, ", ",
              args.quant_max, "], got ", args.zero_point);
  return {element_type(args.dtype), static_cast<float>(args.zero_point), range, activation};
}

bool is_code_type(at::ScalarType type) { return type == at::kByte || type == at::kChar; }

kernels::ElementType element_type(at::ScalarType type) {
  switch (type) {
    case at::kByte:
      return kernels::ElementType::kUInt8;
    case at::kChar:
      return kernels::ElementType::kInt8;
    default:
      TORCH_INTERNAL_ASSERT(type == at::kFloat);
      return kernels::ElementType::kFloat32;
  }
}

at::ScalarType compute_dtype(at::ScalarType output_dtype) {
  return is_code_type(output_dtype) ? output_dtype : at::kFloat;
}

void check_codes(const char* op, const char* name, const at::Tensor& x) {
  TORCH_CHECK(is_code_type(x.scalar_type()), op, ": ", name, " must be uint8 or int8, got ",
              dtype_name(x.scalar_type()));
}

void check_output_dtype(const char* op, at::ScalarType type) {
  TORCH_CHECK(is_code_type(type) || is_float_type(type), op,
              ": output_dtype must be uint8, int8, float32, bfloat16 or float16, got ", dtype_name(type));
}

void check_zero_point(const char* op, const char* name, int64_t zero_point, at::ScalarType type) {
  TORCH_CHECK(zero_point >= smallest_code(type) && zero_point <= largest_code(type), op, ": ", name, " must lie in [",
              smallest_code(type), ", ", largest_code(type), "] for codes of type ", dtype_name(type), ", got ",
              zero_point);
}

void check_finite(const char* op, const char* name, double value) {
  TORCH_CHECK(std::isfinite(static_cast<float>(value)), op, ": ", name, " must be a finite float32, got ", value);
}

void check_values(const char* op, const char* name, const at::Tensor& values, bool positive) {
  const at::Tensor dense = values.contiguous();
  const float* data = dense.const_data_ptr<float>();
  for (int64_t i = 0; i < dense.numel(); ++i) {
    TORCH_CHECK(std::isfinite(data[i]) && (!positive || data[i] > 0.0f), op, ": ", name, " must be finite",
                positive ? " and > 0" : "", ", got ", data[i], " at index ", i);
  }
}

void check_per_channel(const char* op, const char* name, const at::Tensor& values, const c10::SymInt& channels) {
  TORCH_CHECK(values.scalar_type() == at::kFloat, op, ": ", name, " must be float32, got ",
              dtype_name(values.scalar_type()));
  TORCH_CHECK(values.dim() == 1 && values.sym_size(0) == channels, op, ": ", name,
              " must hold one value per output channel, shape [", channels, "], got ", values.sym_sizes());
}

void check_shape(const char* op, const char* name, const at::Tensor& x, c10::SymIntArrayRef expected) {
  TORCH_CHECK(x.sym_sizes() == expected, op, ": ", name, " must have shape ", expected, ", got ", x.sym_sizes());
}

int64_t largest_depth(int64_t weight_quant_min) {
  return std::numeric_limits<int32_t>::max() / (255 * std::max<int64_t>(127, -weight_quant_min));
}

void check_depth(const char* op, const c10::SymInt& depth, int64_t weight_quant_min) {
  TORCH_CHECK(depth <= largest_depth(weight_quant_min), op, ": the reduction depth K must be at most ",
              largest_depth(weight_quant_min), ", because K * 255 * ", std::max<int64_t>(127, -weight_quant_min),
              " must stay below 2^31, got ", depth);
}

void check_weight_bits(const char* op, const at::Tensor& weight, int64_t bits, int64_t quant_min) {
  TORCH_CHECK(bits == 8 || bits == 4, op, ": weight_bits must be 8 or 4, got ", bits);
  const int64_t lowest = bits == 8 ? -128 : -8;
  TORCH_CHECK(quant_min >= lowest && quant_min <= 0, op, ": weight_quant_min must lie in [", lowest,
              ", 0] for weight_bits ", bits, ", got ", quant_min);
  const auto expected = bits == 8 ? at::kChar : at::kByte;
  TORCH_CHECK(weight.scalar_type() == expected, op, ": weight must be ",
              bits == 8 ? "int8" : "uint8 (two codes a byte)", " for weight_bits ", bits, ", got ",
              dtype_name(weight.scalar_type()));
}

c10::SymInt stored_columns(const c10::SymInt& codes, int64_t bits) { return bits == 8 ? codes : (codes + 1) / 2; }

std::vector<c10::SymInt> check_linear(const char* op, const at::Tensor& x, const at::Tensor& weight, int64_t bits,
                                      int64_t quant_min) {
  check_weight_bits(op, weight, bits, quant_min);
  check_same_device(op, "weight", weight, x);
  TORCH_CHECK(x.dim() >= 1 && x.sym_size(-1) >= 1, op, ": x must have shape [..., K] with K at least 1, got ",
              x.sym_sizes());
  const c10::SymInt columns = stored_columns(x.sym_size(-1), bits);
  TORCH_CHECK(weight.dim() == 2 && weight.sym_size(0) >= 1, op, ": weight must have shape [N, K], got ",
              weight.sym_sizes());
  TORCH_CHECK(weight.sym_size(1) == columns, op, ": x must have ", weight.sym_size(1) * (bits == 8 ? 1 : 2),
              " features (its last dimension) for weight_bits ", bits, " and weight of shape ", weight.sym_sizes(),
              ", got x of shape ", x.sym_sizes());
  std::vector<c10::SymInt> sizes = x.sym_sizes().vec();
  sizes.back() = weight.sym_size(0);
  return sizes;
}

void check_grouped_scale(const char* op, const at::Tensor& scale, const std::optional<at::Tensor>& zero_point,
                         const c10::SymInt& rows, const c10::SymInt& columns, std::optional<int64_t> group_size) {
  std::vector<c10::SymInt> expected{rows};
  if (group_size.has_value()) {
    TORCH_CHECK(*group_size >= 1 && columns % *group_size == 0, op, ": group_size must divide the ", columns,
                " codes of a weight row, got ", *group_size);
    expected.push_back(columns / *group_size);
  }
  check_dtype(op, "weight_scale", scale, at::kFloat);
  check_shape(op, "weight_scale", scale, expected);
  if (zero_point.has_value()) {
    check_shape(op, "weight_zero_point", *zero_point, expected);
    check_same_device(op, "weight_zero_point", *zero_point, scale);
  }
}

void check_operands(const char* op, const at::Tensor& a, int64_t a_zero_point, const at::Tensor& b,
                    int64_t b_zero_point) {
  check_codes(op, "a", a);
  check_codes(op, "b", b);
  check_zero_point(op, "a_zero_point", a_zero_point, a.scalar_type());
  check_zero_point(op, "b_zero_point", b_zero_point, b.scalar_type());
  check_same_device(op, "b", b, a);
}

at::Tensor int8_weight(const at::Tensor& weight, int64_t rows, int64_t columns, int64_t bits, int64_t quant_min) {
  const at::Tensor stored = weight.contiguous();
  if (bits == 8) return stored.view({rows, columns});
  const at::Tensor codes = at::empty({rows, columns}, stored.options().dtype(at::kChar));
  const kernels::StoredWeight packed{stored.const_data_ptr(), columns, 4, static_cast<int32_t>(quant_min)};
  int8_t* data = codes.mutable_data_ptr<int8_t>();
  parallel_range(rows, columns,
                 [&](kernels::IndexRange range) { kernels::quantized_kernels().unpack_int4(packed, range, data); });
  return codes;
}

at::Tensor empty_channels_last(c10::SymIntArrayRef sizes, const at::TensorOptions& options) {
  if (sizes.size() == 4) return at::empty_symint(sizes, options, at::MemoryFormat::ChannelsLast);
  const c10::SymInt strides[] = {sizes[1] * sizes[2], 1, sizes[1]};
  return at::empty_strided_symint(sizes, strides, options);
}

at::Tensor to_channels_last(const at::Tensor& x) {
  if (x.dim() == 4) return x.contiguous(at::MemoryFormat::ChannelsLast);
  return x.transpose(1, 2).contiguous().transpose(1, 2);
}

kernels::ImageLayout image_layout(const at::Tensor& x) {
  return kernels::dense_image(x.dim() == 4 ? x.size(2) : 1, x.size(-1), x.size(1));
}

at::Tensor empty_elementwise(c10::SymIntArrayRef sizes, const at::Tensor& a, const at::Tensor& b,
                             at::ScalarType dtype) {
  for (const at::Tensor* operand : {&a, &b}) {
    if (operand->sym_sizes() == sizes && operand->is_non_overlapping_and_dense()) {
      return at::empty_strided_symint(sizes, operand->sym_strides(), operand->options().dtype(dtype));
    }
  }
  return at::empty_symint(sizes, a.options().dtype(dtype));
}

at::Tensor match_layout(const at::Tensor& x, const at::Tensor& out) {
  if (x.sizes() == out.sizes() && x.strides() == out.strides()) return x;
  return at::empty_strided(out.sizes(), out.strides(), x.options()).copy_(x.expand(out.sizes()));
}

kernels::Residual residual_spec(const char* op, const std::optional<at::Tensor>& residual, const at::Tensor& x,
                                c10::SymIntArrayRef sizes, double multiplier, int64_t zero_point) {
  if (!residual.has_value()) return {};
  check_codes(op, "residual", *residual);
  check_same_device(op, "residual", *residual, x);
  check_shape(op, "residual", *residual, sizes);
  check_zero_point(op, "residual_zero_point", zero_point, residual->scalar_type());
  check_finite(op, "residual_multiplier", multiplier);
  return {nullptr, element_type(residual->scalar_type()), static_cast<int32_t>(zero_point),
          static_cast<float>(multiplier)};
}

kernels::Operand operand(const at::Tensor& dense, int64_t zero_point) {
  return {dense.const_data_ptr(), element_type(dense.scalar_type()), static_cast<int32_t>(zero_point)};
}

at::Tensor float_or_undefined(const std::optional<at::Tensor>& tensor) {
  return tensor.has_value() ? tensor->to(at::kFloat).contiguous() : at::Tensor();
}

const float* float_data_or_null(const at::Tensor& tensor) {
  return tensor.defined() ? tensor.const_data_ptr<float>() : nullptr;
}

}  // namespace torchquant::ops
