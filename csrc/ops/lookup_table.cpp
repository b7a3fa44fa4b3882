// Builds lookup tables; see lookup_table.h.
#include "ops/lookup_table.h"

#include <ATen/ops/empty.h>

#include <algorithm>
#include <cmath>

#include "ops/quantized_common.h"

namespace torchquant::ops {
namespace {

constexpr const char* kWho = "build_lookup_table";
constexpr int64_t kEntries = 256;

double hardsigmoid(double x) { return std::clamp(x + 3.0, 0.0, 6.0) / 6.0; }

double gelu_tanh(double x) {
  const double u = std::sqrt(2.0 / M_PI) * (x + 0.044715 * x * x * x);
  return 0.5 * x * (1.0 + std::tanh(u));
}

std::function<double(double)> clamp_to(double lo, double hi) {
  return [lo, hi](double x) { return std::clamp(x, lo, hi); };
}

std::function<double(double)> activation_function(std::string_view name, at::ArrayRef<double> args) {
  TORCH_CHECK(args.size() == (name == "hardtanh" ? 2 : 0), kWho,
              ": activation_args must be [lo, hi] for hardtanh and empty otherwise, got ", args, " for '", name, "'");
  if (name == "none") return [](double x) { return x; };
  if (name == "relu") return [](double x) { return std::max(x, 0.0); };
  if (name == "relu6") return clamp_to(0.0, 6.0);
  if (name == "hardtanh") {
    TORCH_CHECK(args[0] <= args[1], kWho, ": activation_args must be [lo, hi] with lo <= hi, got ", args);
    return clamp_to(args[0], args[1]);
  }
  if (name == "hardswish") return [](double x) { return x * hardsigmoid(x); };
  if (name == "hardsigmoid") return hardsigmoid;
  if (name == "silu") return [](double x) { return x / (1.0 + std::exp(-x)); };
  if (name == "gelu") return [](double x) { return 0.5 * x * std::erfc(-x / std::sqrt(2.0)); };
  if (name == "gelu_tanh") return gelu_tanh;
  if (name == "sigmoid") return [](double x) { return 1.0 / (1.0 + std::exp(-x)); };
  TORCH_CHECK(name == "tanh", kWho, ": activation must be one of ", activation_names(), ", got '", name, "'");
  return [](double x) { return std::tanh(x); };
}

double output_value(double y, const LookupOutput& output) {
  if (!is_code_type(output.dtype)) return y;
  const double code = std::nearbyint(y / output.scale) + static_cast<double>(output.zero_point);
  if (std::isnan(code)) return static_cast<double>(output.zero_point);
  return std::clamp(code, static_cast<double>(output.quant_min), static_cast<double>(output.quant_max));
}

void check_scale(const char* name, float scale) {
  TORCH_CHECK(numerics::valid_scale(scale), kWho, ": ", name, " must be finite and > 0, got ", scale);
}

}  // namespace

int64_t lookup_table_min(at::ScalarType input_dtype) {
  TORCH_CHECK(is_code_type(input_dtype), kWho, ": the input dtype must be uint8 or int8, got ",
              dtype_name(input_dtype));
  return input_dtype == at::kByte ? 0 : -128;
}

at::Tensor build_lookup_table(const std::function<double(double)>& f, const LookupInput& input,
                              const LookupOutput& output) {
  const int64_t smallest = lookup_table_min(input.dtype);
  check_scale("input scale", input.scale);
  check_zero_point(kWho, "input zero_point", input.zero_point, input.dtype);
  output_spec(kWho, {"none",
                     {},
                     is_code_type(output.dtype) ? output.scale : 1.0,
                     output.zero_point,
                     output.quant_min,
                     output.quant_max,
                     output.dtype});
  const at::Tensor table = at::empty({kEntries}, at::TensorOptions().dtype(at::kDouble));
  double* entries = table.mutable_data_ptr<double>();
  for (int64_t i = 0; i < kEntries; ++i) {
    const auto steps = static_cast<double>(smallest + i - input.zero_point);
    entries[i] = output_value(f(steps * static_cast<double>(input.scale)), output);
  }
  return table.to(output.dtype);
}

at::Tensor build_lookup_table(std::string_view activation, at::ArrayRef<double> activation_args,
                              const LookupInput& input, const LookupOutput& output) {
  return build_lookup_table(activation_function(activation, activation_args), input, output);
}

}  // namespace torchquant::ops
