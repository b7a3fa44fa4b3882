// dequantize: int8 or uint8 codes back to (q - zero_point) * scale.
#include <ATen/ops/empty_like.h>
#include <torch/library.h>

#include "ops/checks.h"
#include "ops/dispatch.h"
#include "ops/granularity.h"
#include "ops/ops.h"

namespace torchquant {

at::Tensor dequantize(const at::Tensor& q, const at::Tensor& scale, const at::Tensor& zero_point,
                      std::optional<int64_t> axis, std::optional<int64_t> group_size, at::ScalarType dtype) {
  static const auto op = ops::find_op<decltype(dequantize)>("torchquant::dequantize");
  return op.call(q, scale, zero_point, axis, group_size, dtype);
}

namespace ops {
namespace {

constexpr const char* kOp = "dequantize";

void check(const at::Tensor& q, const at::Tensor& scale, const at::Tensor& zero_point, const Granularity& granularity,
           at::ScalarType dtype) {
  TORCH_CHECK(q.scalar_type() == at::kChar || q.scalar_type() == at::kByte, kOp, ": q must be int8 or uint8, got ",
              dtype_name(q.scalar_type()));
  TORCH_CHECK(dtype == at::kFloat || dtype == at::kBFloat16 || dtype == at::kHalf, kOp,
              ": dtype must be float32, bfloat16 or float16, got ", dtype_name(dtype));
  check_granularity(kOp, q, granularity);
  check_qparams(kOp, q, scale, zero_point, granularity);
}

at::Tensor meta(const at::Tensor& q, const at::Tensor& scale, const at::Tensor& zero_point, std::optional<int64_t> axis,
                std::optional<int64_t> group_size, at::ScalarType dtype) {
  check(q, scale, zero_point, {axis, group_size}, dtype);
  return at::empty_like(q, q.options().dtype(dtype));
}

at::Tensor cpu(const at::Tensor& q, const at::Tensor& scale, const at::Tensor& zero_point, std::optional<int64_t> axis,
               std::optional<int64_t> group_size, at::ScalarType dtype) {
  const Granularity granularity{axis, group_size};
  check(q, scale, zero_point, granularity, dtype);
  const at::Tensor input = to_dense(q);
  const bool is_signed = input.scalar_type() == at::kChar;
  const auto range = is_signed ? to_range(-128, 127) : to_range(0, 255);
  const CpuQParams params(kOp, input, scale, zero_point, granularity, range);
  at::Tensor output = at::empty_like(input, input.options().dtype(dtype));
  const auto& kernels = kernels::fake_quantize_kernels();
  const auto type = float_type(output);
  const auto size = static_cast<int64_t>(output.element_size());
  const auto* codes = static_cast<const std::byte*>(input.const_data_ptr());
  auto* values = static_cast<std::byte*>(output.mutable_data_ptr());
  for_each_piece(
      params,
      [&](int64_t begin, int64_t n, numerics::QParams p) {
        kernels.dequantize_run(codes + begin, values + begin * size, n, is_signed, type, p);
      },
      [&](int64_t begin, int64_t n, kernels::QParamArrays p) {
        kernels.dequantize_each(codes + begin, values + begin * size, n, is_signed, type, p);
      });
  return output;
}

at::Tensor autograd(const at::Tensor& q, const at::Tensor& scale, const at::Tensor& zero_point,
                    std::optional<int64_t> axis, std::optional<int64_t> group_size, at::ScalarType dtype) {
  const auto run = [&] { return NoGradient<dequantize>::call(q, scale, zero_point, axis, group_size, dtype); };
  if (!needs_node(scale, zero_point)) return run();
  return NoDerivative::apply(std::string(kOp), at::TensorList{scale, zero_point},
                             [&] { return torch::autograd::variable_list{run()}; })[0];
}

at::Tensor autocast(const at::Tensor& q, const at::Tensor& scale, const at::Tensor& zero_point,
                    std::optional<int64_t> axis, std::optional<int64_t> group_size, at::ScalarType dtype) {
  c10::impl::ExcludeDispatchKeyGuard no_autocast(c10::autocast_dispatch_keyset);
  return dequantize(q, to_fp32(scale), to_fp32(zero_point), axis, group_size, dtype);
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(torchquant, m) {
  m.def(
      "dequantize(Tensor q, Tensor scale, Tensor zero_point, *, int? axis=None, int? group_size=None, "
      "ScalarType dtype=float) -> Tensor",
      {at::Tag::pt2_compliant_tag});
}
TORCH_LIBRARY_IMPL(torchquant, CPU, m) { m.impl(kOp, cpu); }
TORCH_LIBRARY_IMPL(torchquant, Meta, m) { m.impl(kOp, meta); }
TORCH_LIBRARY_IMPL(torchquant, Autograd, m) { m.impl(kOp, autograd); }
TORCH_LIBRARY_IMPL(torchquant, AutocastCPU, m) { m.impl(kOp, autocast); }
TORCH_LIBRARY_IMPL(torchquant, AutocastCUDA, m) { m.impl(kOp, autocast); }

}  // namespace ops
}  // namespace torchquant
