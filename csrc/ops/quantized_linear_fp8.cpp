// torchquant::quantized_linear_fp8: quantizes a float input to 8-bit floats, each row by its own largest value or all
// by one scale, multiplies with weights of 8-bit floats and returns floats. Emitted by the converter for fp8 layers.
//
//   out = fmaf(sum of q_x * q_w, s_x * s_w, bias), in fp32, narrowed once
//
// Products of codes are exact in fp32; in which order they are added is the matrix library's: a named exception.
#include <ATen/ops/empty.h>
#include <ATen/ops/mm.h>

#include <cmath>
#include <vector>

#include "ops/dispatch.h"
#include "ops/float8.h"
#include "ops/quantized_common.h"

namespace torchquant::ops {
namespace {

constexpr const char* kOp = "quantized_linear_fp8";

using kernels::Float8Type;

void check_x_type(const at::Tensor& weight, at::ScalarType x_dtype) {
  check_float8(kOp, "x_dtype", x_dtype);
  TORCH_CHECK(
      x_dtype == at::kFloat8_e4m3fn || weight.scalar_type() == at::kFloat8_e4m3fn, kOp,
      ": x_dtype must be float8_e4m3fn for a float8_e5m2 weight, because GPUs multiply no two float8_e5m2, got ",
      dtype_name(x_dtype));
}

void check_scale_of(const char* name, const at::Tensor& scale, const at::Tensor& x) {
  check_dtype(kOp, name, scale, at::kFloat);
  check_same_device(kOp, name, scale, x);
}

// The output's sizes.
std::vector<c10::SymInt> check(const at::Tensor& x, const at::Tensor& weight, const at::Tensor& weight_scale,
                               const std::optional<at::Tensor>& bias, const std::optional<at::Tensor>& x_scale,
                               at::ScalarType x_dtype) {
  check_float(kOp, "x", x);
  check_float8(kOp, "weight", weight.scalar_type());
  check_x_type(weight, x_dtype);
  check_same_device(kOp, "weight", weight, x);
  TORCH_CHECK(weight.dim() == 2 && weight.sym_size(0) >= 1, kOp, ": weight must have shape [N, K], got ",
              weight.sym_sizes());
  TORCH_CHECK(x.dim() >= 1 && x.sym_size(-1) >= 1 && x.sym_size(-1) == weight.sym_size(1), kOp,
              ": x must have shape [..., K] with the K of a weight of shape ", weight.sym_sizes(), ", got ",
              x.sym_sizes());
  const c10::SymInt channels = weight.sym_size(0);
  check_scale_of("weight_scale", weight_scale, x);
  TORCH_CHECK(weight_scale.dim() == 1 && (weight_scale.sym_size(0) == 1 || weight_scale.sym_size(0) == channels), kOp,
              ": weight_scale must hold one value, or one per output channel, shape [", channels, "], got ",
              weight_scale.sym_sizes());
  if (x_scale.has_value()) {
    check_scale_of("x_scale", *x_scale, x);
    TORCH_CHECK(x_scale->sym_numel() == 1, kOp, ": x_scale must have one element, got ", x_scale->sym_sizes());
  }
  if (bias.has_value()) {
    check_per_channel(kOp, "bias", *bias, channels);
    check_same_device(kOp, "bias", *bias, x);
  }
  std::vector<c10::SymInt> sizes = x.sym_sizes().vec();
  sizes.back() = channels;
  return sizes;
}

// The input's codes as floats, [rows, depth], and their scales, [rows] or one.
struct Input {
  at::Tensor values;
  std::vector<float> scale;

  float scale_of(int64_t row) const { return scale[scale.size() > 1 ? row : 0]; }
};

Input quantize_input(const at::Tensor& x, const std::optional<at::Tensor>& x_scale, Float8Type type) {
  const auto& kernels = kernels::float8_kernels();
  const CpuRows rows(x);
  Input input{at::empty({rows.rows, rows.depth}, rows.dense.options()), {}};
  input.scale.resize(x_scale.has_value() ? 1 : rows.rows);
  if (x_scale.has_value()) input.scale[0] = *x_scale->const_data_ptr<float>();
  float* values = input.values.mutable_data_ptr<float>();
  for_each_run(rows, /*per_row=*/true, [&](int64_t row, int64_t first, int64_t n) {
    std::vector<uint8_t> codes(n);
    if (!x_scale.has_value()) input.scale[row] = kernels.scale_of(rows.data() + first, n, type);
    kernels.quantize(rows.data() + first, n, input.scale_of(row), type, codes.data());
    kernels.dequantize(codes.data(), n, 1.0f, type, values + first);
  });
  return input;
}

// A weight as CPU kernels read it.
struct Weight {
  const uint8_t* codes;
  Float8Type type;
  const float* scale;
  bool per_channel;
  const float* bias;  // null for none
};

// Channels of a panel are decoded together, so that the decoded weight stays in the cache.
constexpr int64_t kPanel = 64;

void multiply_panel(const Input& input, const Weight& weight, int64_t first, int64_t channels, float* out,
                    int64_t out_stride) {
  const at::AutoDispatchBelowADInplaceOrView below_autograd;  // this may be a thread of a pool
  const c10::impl::ExcludeDispatchKeyGuard no_autocast(c10::autocast_dispatch_keyset);  // mm would narrow the codes
  const int64_t rows = input.values.size(0), depth = input.values.size(1);
  const at::Tensor panel = at::empty({channels, depth}, input.values.options());
  kernels::float8_kernels().dequantize(weight.codes + first * depth, channels * depth, 1.0f, weight.type,
                                       panel.mutable_data_ptr<float>());
  const at::Tensor sums = at::mm(input.values, panel.t()).contiguous();
  const float* sum = sums.const_data_ptr<float>();
  for (int64_t row = 0; row < rows; ++row) {
    for (int64_t c = 0; c < channels; ++c) {
      const float scale = input.scale_of(row) * weight.scale[weight.per_channel ? first + c : 0];
      const float bias = weight.bias != nullptr ? weight.bias[first + c] : 0.0f;
      out[row * out_stride + first + c] = std::fmaf(sum[row * channels + c], scale, bias);
    }
  }
}

at::Tensor quantized_linear_fp8(const at::Tensor& x, const at::Tensor& weight, const at::Tensor& weight_scale,
                                const std::optional<at::Tensor>& bias, const std::optional<at::Tensor>& x_scale,
                                std::optional<at::ScalarType> x_dtype) {
  const at::ScalarType type = x_dtype.value_or(at::kFloat8_e4m3fn);
  const auto sizes = check(x, weight, weight_scale, bias, x_scale, type);
  if (!x.is_cpu()) return at::empty_symint(sizes, x.options());  // Meta, which the CUDA kernel calls too
  const at::Tensor out = at::empty_symint(sizes, x.options().dtype(at::kFloat));
  if (out.numel() == 0) return out.to(x.scalar_type());

  const at::Tensor codes = weight.contiguous(), scale = weight_scale.contiguous();
  const at::Tensor dense_bias = float_or_undefined(bias);
  check_values(kOp, "weight_scale", scale, /*positive=*/true);
  if (x_scale.has_value()) {
    const float given = *x_scale->const_data_ptr<float>();
    TORCH_CHECK(numerics::valid_scale(given), kOp, ": x_scale must be finite and > 0, with a finite reciprocal, got ",
                given);
  }
  const Weight stored{static_cast<const uint8_t*>(codes.const_data_ptr()),
                      check_float8(kOp, "weight", weight.scalar_type()), scale.const_data_ptr<float>(),
                      scale.numel() > 1, float_data_or_null(dense_bias)};
  const Input input = quantize_input(x, x_scale, check_float8(kOp, "x_dtype", type));
  const int64_t channels = out.size(-1);
  float* results = out.mutable_data_ptr<float>();
  at::parallel_for(0, (channels + kPanel - 1) / kPanel, 1, [&](int64_t begin, int64_t end) {
    for (int64_t panel = begin; panel < end; ++panel) {
      const int64_t first = panel * kPanel;
      multiply_panel(input, stored, first, std::min(kPanel, channels - first), results, channels);
    }
  });
  return out.to(x.scalar_type());
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(torchquant, m) {
  define(m,
         "quantized_linear_fp8(Tensor x, Tensor weight, Tensor weight_scale, Tensor? bias=None, *, "
         "Tensor? x_scale=None, ScalarType? x_dtype=None) -> Tensor");
}
TORCH_LIBRARY_IMPL(torchquant, CPU, m) { m.impl(kOp, quantized_linear_fp8); }
TORCH_LIBRARY_IMPL(torchquant, Meta, m) { m.impl(kOp, quantized_linear_fp8); }

}  // namespace torchquant::ops
