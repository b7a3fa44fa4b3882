// quantize: float values to int8 or uint8 codes. NaN gives the zero point, infinities saturate.
#include <ATen/ops/empty_like.h>
#include <torch/library.h>

#include "ops/checks.h"
#include "ops/dispatch.h"
#include "ops/granularity.h"
#include "ops/ops.h"

namespace torchquant {

at::Tensor quantize(const at::Tensor& x, const at::Tensor& scale, const at::Tensor& zero_point,
                    std::optional<int64_t> axis, std::optional<int64_t> group_size, at::ScalarType dtype,
                    std::optional<int64_t> quant_min, std::optional<int64_t> quant_max) {
  static const auto op = ops::find_op<decltype(quantize)>("torchquant::quantize");
  return op.call(x, scale, zero_point, axis, group_size, dtype, quant_min, quant_max);
}

namespace ops {
namespace {

constexpr const char* kOp = "quantize";

numerics::QRange check(const at::Tensor& x, const at::Tensor& scale, const at::Tensor& zero_point,
                       const Granularity& granularity, at::ScalarType dtype, std::optional<int64_t> quant_min,
                       std::optional<int64_t> quant_max) {
  check_float(kOp, "x", x);
  const bool is_signed = dtype == at::kChar;
  const int64_t lowest = quant_min.value_or(is_signed ? -128 : 0);
  const int64_t highest = quant_max.value_or(is_signed ? 127 : 255);
  check_range_of_dtype(kOp, dtype, lowest, highest);
  check_granularity(kOp, x, granularity);
  check_qparams(kOp, x, scale, zero_point, granularity);
  return to_range(lowest, highest);
}

at::Tensor meta(const at::Tensor& x, const at::Tensor& scale, const at::Tensor& zero_point, std::optional<int64_t> axis,
                std::optional<int64_t> group_size, at::ScalarType dtype, std::optional<int64_t> quant_min,
                std::optional<int64_t> quant_max) {
  check(x, scale, zero_point, {axis, group_size}, dtype, quant_min, quant_max);
  return at::empty_like(x, x.options().dtype(dtype));
}

at::Tensor cpu(const at::Tensor& x, const at::Tensor& scale, const at::Tensor& zero_point, std::optional<int64_t> axis,
               std::optional<int64_t> group_size, at::ScalarType dtype, std::optional<int64_t> quant_min,
               std::optional<int64_t> quant_max) {
  const Granularity granularity{axis, group_size};
  const auto range = check(x, scale, zero_point, granularity, dtype, quant_min, quant_max);
  const at::Tensor input = to_dense(x);
  const CpuQParams params(kOp, input, scale, zero_point, granularity, range);
  at::Tensor output = at::empty_like(input, input.options().dtype(dtype));
  const auto& kernels = kernels::fake_quantize_kernels();
  const auto type = float_type(input);
  const auto size = static_cast<int64_t>(input.element_size());
  const auto* values = static_cast<const std::byte*>(input.const_data_ptr());
  auto* codes = static_cast<std::byte*>(output.mutable_data_ptr());
  for_each_piece(
      params,
      [&](int64_t begin, int64_t n, numerics::QParams p) {
        kernels.quantize_run(values + begin * size, codes + begin, n, type, p, range);
      },
      [&](int64_t begin, int64_t n, kernels::QParamArrays p) {
        kernels.quantize_each(values + begin * size, codes + begin, n, type, p, range);
      });
  return output;
}

at::Tensor autocast(const at::Tensor& x, const at::Tensor& scale, const at::Tensor& zero_point,
                    std::optional<int64_t> axis, std::optional<int64_t> group_size, at::ScalarType dtype,
                    std::optional<int64_t> quant_min, std::optional<int64_t> quant_max) {
  c10::impl::ExcludeDispatchKeyGuard no_autocast(c10::autocast_dispatch_keyset);
  return quantize(x, to_fp32(scale), to_fp32(zero_point), axis, group_size, dtype, quant_min, quant_max);
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(torchquant, m) {
  m.def(
      "quantize(Tensor x, Tensor scale, Tensor zero_point, *, int? axis=None, int? group_size=None, ScalarType dtype, "
      "int? quant_min=None, int? quant_max=None) -> Tensor",
      {at::Tag::pt2_compliant_tag});
}
TORCH_LIBRARY_IMPL(torchquant, CPU, m) { m.impl(kOp, cpu); }
TORCH_LIBRARY_IMPL(torchquant, Meta, m) { m.impl(kOp, meta); }
TORCH_LIBRARY_IMPL(torchquant, Autograd, m) { m.impl(kOp, NoGradient<quantize>::call); }
TORCH_LIBRARY_IMPL(torchquant, AutocastCPU, m) { m.impl(kOp, autocast); }
TORCH_LIBRARY_IMPL(torchquant, AutocastCUDA, m) { m.impl(kOp, autocast); }

}  // namespace ops
}  // namespace torchquant
