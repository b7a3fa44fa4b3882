// quantize_fp8, quantize_fp8_dynamic and dequantize_fp8: floats to 8-bit floats and back; see float8.h.
#include "ops/float8.h"

#include <ATen/ops/empty.h>
#include <torch/library.h>

#include "ops/checks.h"
#include "ops/dispatch.h"

namespace torchquant {

at::Tensor quantize_fp8(const at::Tensor& x, const at::Tensor& scale, at::ScalarType dtype) {
  static const auto op = ops::find_op<decltype(quantize_fp8)>("torchquant::quantize_fp8");
  return op.call(x, scale, dtype);
}

std::tuple<at::Tensor, at::Tensor> quantize_fp8_dynamic(const at::Tensor& x, at::ScalarType dtype) {
  static const auto op = ops::find_op<decltype(quantize_fp8_dynamic)>("torchquant::quantize_fp8_dynamic");
  return op.call(x, dtype);
}

at::Tensor dequantize_fp8(const at::Tensor& q, const at::Tensor& scale, at::ScalarType dtype) {
  static const auto op = ops::find_op<decltype(dequantize_fp8)>("torchquant::dequantize_fp8");
  return op.call(q, scale, dtype);
}

namespace ops {

kernels::Float8Type check_float8(const char* op, const char* argument, at::ScalarType dtype) {
  TORCH_CHECK(dtype == at::kFloat8_e4m3fn || dtype == at::kFloat8_e5m2, op, ": ", argument,
              " must be float8_e4m3fn or float8_e5m2, got ", dtype_name(dtype));
  return dtype == at::kFloat8_e4m3fn ? kernels::Float8Type::kE4M3 : kernels::Float8Type::kE5M2;
}

namespace {

constexpr const char* kQuantize = "quantize_fp8";
constexpr const char* kDynamic = "quantize_fp8_dynamic";
constexpr const char* kDequantize = "dequantize_fp8";

void check_row_scale(const char* op, const at::Tensor& x, const at::Tensor& scale) {
  check_dtype(op, "scale", scale, at::kFloat);
  check_same_device(op, "scale", scale, x);
  const auto rows = x.sym_sizes().slice(0, x.dim() - 1);
  TORCH_CHECK(scale.sym_numel() == 1 || scale.sym_sizes() == rows, op,
              ": scale must have one element, or one for each row of the input, shape ", rows, ", got ",
              scale.sym_sizes());
}

void check_has_rows(const char* op, const char* argument, const at::Tensor& x) {
  TORCH_CHECK(x.dim() >= 1, op, ": ", argument, " must have at least one dimension, got a tensor of shape []");
}

}  // namespace

void check_rows(const char* op, const at::Tensor& x, const std::optional<at::Tensor>& scale) {
  check_float(op, "x", x);
  check_has_rows(op, "x", x);
  if (scale.has_value()) check_row_scale(op, x, *scale);
}

namespace {

at::Tensor quantize_meta(const at::Tensor& x, const at::Tensor& scale, at::ScalarType dtype) {
  check_float8(kQuantize, "dtype", dtype);
  check_rows(kQuantize, x, scale);
  return at::empty_symint(x.sym_sizes(), x.options().dtype(dtype));
}

at::Tensor quantize_cpu(const at::Tensor& x, const at::Tensor& scale, at::ScalarType dtype) {
  const at::Tensor codes = quantize_meta(x, scale, dtype);
  const auto type = check_float8(kQuantize, "dtype", dtype);
  const at::Tensor scales = scale.contiguous();
  check_scale_values(kQuantize, scales.const_data_ptr<float>(), scales.numel());
  const CpuRows rows(x);
  auto* to = static_cast<uint8_t*>(codes.mutable_data_ptr());
  for_each_run(rows, scales.numel() > 1, [&](int64_t i, int64_t first, int64_t n) {
    kernels::float8_kernels().quantize(rows.data() + first, n, scales.const_data_ptr<float>()[i], type, to + first);
  });
  return codes;
}

std::tuple<at::Tensor, at::Tensor> dynamic_meta(const at::Tensor& x, at::ScalarType dtype) {
  check_float8(kDynamic, "dtype", dtype);
  check_rows(kDynamic, x, std::nullopt);
  return {at::empty_symint(x.sym_sizes(), x.options().dtype(dtype)),
          at::empty_symint(x.sym_sizes().slice(0, x.dim() - 1), x.options().dtype(at::kFloat))};
}

std::tuple<at::Tensor, at::Tensor> dynamic_cpu(const at::Tensor& x, at::ScalarType dtype) {
  auto [codes, scale] = dynamic_meta(x, dtype);
  const auto type = check_float8(kDynamic, "dtype", dtype);
  const CpuRows rows(x);
  if (rows.depth == 0) return {codes, scale.fill_(1.0)};
  auto* to = static_cast<uint8_t*>(codes.mutable_data_ptr());
  float* scales = scale.mutable_data_ptr<float>();
  const auto& kernels = kernels::float8_kernels();
  for_each_run(rows, /*per_row=*/true, [&](int64_t i, int64_t first, int64_t n) {
    scales[i] = kernels.scale_of(rows.data() + first, n, type);
    kernels.quantize(rows.data() + first, n, scales[i], type, to + first);
  });
  return {codes, scale};
}

at::Tensor dequantize_meta(const at::Tensor& q, const at::Tensor& scale, at::ScalarType dtype) {
  check_float8(kDequantize, "q", q.scalar_type());
  check_has_rows(kDequantize, "q", q);
  check_row_scale(kDequantize, q, scale);
  TORCH_CHECK(dtype == at::kFloat || dtype == at::kBFloat16 || dtype == at::kHalf, kDequantize,
              ": dtype must be float32, bfloat16 or float16, got ", dtype_name(dtype));
  return at::empty_symint(q.sym_sizes(), q.options().dtype(dtype));
}

at::Tensor dequantize_cpu(const at::Tensor& q, const at::Tensor& scale, at::ScalarType dtype) {
  dequantize_meta(q, scale, dtype);
  const auto type = check_float8(kDequantize, "q", q.scalar_type());
  const at::Tensor scales = scale.contiguous(), codes = q.contiguous();
  check_scale_values(kDequantize, scales.const_data_ptr<float>(), scales.numel());
  const at::Tensor values = at::empty(q.sizes(), q.options().dtype(at::kFloat));
  const auto* from = static_cast<const uint8_t*>(codes.const_data_ptr());
  float* to = values.mutable_data_ptr<float>();
  for_each_run(CpuRows(values), scales.numel() > 1, [&](int64_t i, int64_t first, int64_t n) {
    kernels::float8_kernels().dequantize(from + first, n, scales.const_data_ptr<float>()[i], type, to + first);
  });
  return values.to(dtype);
}

at::Tensor dequantize_autograd(const at::Tensor& q, const at::Tensor& scale, at::ScalarType dtype) {
  const auto run = [&] { return NoGradient<dequantize_fp8>::call(q, scale, dtype); };
  if (!needs_node(q, scale)) return run();
  return NoDerivative::apply(std::string(kDequantize), at::TensorList{q, scale},
                             [&] { return torch::autograd::variable_list{run()}; })[0];
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(torchquant, m) {
  define(m, "quantize_fp8(Tensor x, Tensor scale, *, ScalarType dtype) -> Tensor");
  define(m, "quantize_fp8_dynamic(Tensor x, *, ScalarType dtype) -> (Tensor, Tensor)");
  define(m, "dequantize_fp8(Tensor q, Tensor scale, *, ScalarType dtype=float) -> Tensor");
}
TORCH_LIBRARY_IMPL(torchquant, CPU, m) {
  m.impl(kQuantize, quantize_cpu);
  m.impl(kDynamic, dynamic_cpu);
  m.impl(kDequantize, dequantize_cpu);
}
TORCH_LIBRARY_IMPL(torchquant, Meta, m) {
  m.impl(kQuantize, quantize_meta);
  m.impl(kDynamic, dynamic_meta);
  m.impl(kDequantize, dequantize_meta);
}
TORCH_LIBRARY_IMPL(torchquant, Autograd, m) {
  m.impl(kQuantize, NoGradient<quantize_fp8>::call);
  m.impl(kDynamic, NoGradient<quantize_fp8_dynamic>::call);
  m.impl(kDequantize, dequantize_autograd);
}

}  // namespace ops
}  // namespace torchquant
