// Scale and zero point from data: choose_qparams (from a tensor's own range, for dynamic quantization and weights),
// qparams_from_min_max (from an observer's range) and power_of_two_qparams (of what either chose). None carries a
// gradient.
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include "numerics/qparams.h"
#include "ops/checks.h"
#include "ops/dispatch.h"
#include "ops/min_max.h"
#include "ops/ops.h"

namespace torchquant {

std::tuple<at::Tensor, at::Tensor> choose_qparams(const at::Tensor& x, std::optional<int64_t> axis,
                                                  std::optional<int64_t> group_size, bool symmetric, int64_t quant_min,
                                                  int64_t quant_max) {
  static const auto op = ops::find_op<decltype(choose_qparams)>("torchquant::choose_qparams");
  return op.call(x, axis, group_size, symmetric, quant_min, quant_max);
}

std::tuple<at::Tensor, at::Tensor> qparams_from_min_max(const at::Tensor& min_val, const at::Tensor& max_val,
                                                        bool symmetric, int64_t quant_min, int64_t quant_max) {
  static const auto op = ops::find_op<decltype(qparams_from_min_max)>("torchquant::qparams_from_min_max");
  return op.call(min_val, max_val, symmetric, quant_min, quant_max);
}

std::tuple<at::Tensor, at::Tensor> power_of_two_qparams(const at::Tensor& scale, const at::Tensor& zero_point,
                                                        bool symmetric, int64_t quant_min, int64_t quant_max) {
  static const auto op = ops::find_op<decltype(power_of_two_qparams)>("torchquant::power_of_two_qparams");
  return op.call(scale, zero_point, symmetric, quant_min, quant_max);
}

namespace ops {
namespace {

using numerics::Range;
using QParamTensors = std::tuple<at::Tensor, at::Tensor>;

constexpr const char* kChooseOp = "choose_qparams";
constexpr const char* kMinMaxOp = "qparams_from_min_max";
constexpr const char* kPowerOfTwoOp = "power_of_two_qparams";

void check_choose(const at::Tensor& x, const Granularity& granularity, int64_t quant_min, int64_t quant_max) {
  check_float(kChooseOp, "x", x);
  check_range(kChooseOp, quant_min, quant_max);
  check_granularity(kChooseOp, x, granularity);
}

QParamTensors choose_meta(const at::Tensor& x, std::optional<int64_t> axis, std::optional<int64_t> group_size,
                          bool /*symmetric*/, int64_t quant_min, int64_t quant_max) {
  const Granularity granularity{axis, group_size};
  check_choose(x, granularity, quant_min, quant_max);
  const c10::SymDimVector shape = params_shape(x, granularity);
  const auto fp32 = x.options().dtype(at::kFloat);
  return {at::empty_symint(shape, fp32), at::empty_symint(shape, fp32)};
}

// range(i) -> Range of parameter i
template <typename RangeOf>
QParamTensors qparams_of(int64_t count, const RangeOf& range_of, bool symmetric, numerics::QRange range) {
  const auto fp32 = at::TensorOptions().dtype(at::kFloat);
  at::Tensor scale = at::empty({count}, fp32);
  at::Tensor zero_point = at::empty({count}, fp32);
  auto* s = scale.mutable_data_ptr<float>();
  auto* z = zero_point.mutable_data_ptr<float>();
  for (int64_t i = 0; i < count; ++i) {
    const Range seen = range_of(i);
    const auto chosen = numerics::choose_qparams(seen.min_val, seen.max_val, symmetric, range);
    s[i] = chosen.scale;
    z[i] = chosen.zero_point;
  }
  return {scale, zero_point};
}

QParamTensors choose_cpu(const at::Tensor& x, std::optional<int64_t> axis, std::optional<int64_t> group_size,
                         bool symmetric, int64_t quant_min, int64_t quant_max) {
  const Granularity granularity{axis, group_size};
  check_choose(x, granularity, quant_min, quant_max);
  const at::Tensor input = to_dense(x);
  const ObservedRanges observed = observe_ranges(input, granularity);
  const auto [scale, zero_point] = qparams_of(
      static_cast<int64_t>(observed.ranges.size()), [&](int64_t i) { return observed.ranges[i]; }, symmetric,
      to_range(quant_min, quant_max));
  return {params_from_memory_order(scale, input, granularity),
          params_from_memory_order(zero_point, input, granularity)};
}

void check_min_max(const at::Tensor& min_val, const at::Tensor& max_val, int64_t quant_min, int64_t quant_max) {
  check_dtype(kMinMaxOp, "min_val", min_val, at::kFloat);
  check_dtype(kMinMaxOp, "max_val", max_val, at::kFloat);
  check_same_device(kMinMaxOp, "max_val", max_val, min_val);
  TORCH_CHECK(min_val.sym_sizes() == max_val.sym_sizes(), kMinMaxOp, ": max_val must have the shape of min_val, ",
              min_val.sym_sizes(), ", got ", max_val.sym_sizes());
  check_range(kMinMaxOp, quant_min, quant_max);
}

// A range is empty (+inf, -inf: nothing was seen) or has finite, ordered ends.
void check_observed_range(Range seen, int64_t index) {
  constexpr float kInfinity = std::numeric_limits<float>::infinity();
  if (seen.min_val == kInfinity && seen.max_val == -kInfinity) return;
  TORCH_CHECK(std::isfinite(seen.min_val) && std::isfinite(seen.max_val) && seen.min_val <= seen.max_val, kMinMaxOp,
              ": min_val and max_val must be finite with min_val <= max_val, got [", seen.min_val, ", ", seen.max_val,
              "] at channel ", index);
}

QParamTensors min_max_meta(const at::Tensor& min_val, const at::Tensor& max_val, bool /*symmetric*/, int64_t quant_min,
                           int64_t quant_max) {
  check_min_max(min_val, max_val, quant_min, quant_max);
  return {at::empty_symint(min_val.sym_sizes(), min_val.options()),
          at::empty_symint(min_val.sym_sizes(), min_val.options())};
}

QParamTensors min_max_cpu(const at::Tensor& min_val, const at::Tensor& max_val, bool symmetric, int64_t quant_min,
                          int64_t quant_max) {
  check_min_max(min_val, max_val, quant_min, quant_max);
  const at::Tensor lows = min_val.contiguous();
  const at::Tensor highs = max_val.contiguous();
  const auto* low = lows.const_data_ptr<float>();
  const auto* high = highs.const_data_ptr<float>();
  const auto range_of = [&](int64_t i) {
    const Range seen{low[i], high[i]};
    check_observed_range(seen, i);
    return seen;
  };
  const auto [scale, zero_point] = qparams_of(lows.numel(), range_of, symmetric, to_range(quant_min, quant_max));
  return {scale.view(min_val.sizes()), zero_point.view(min_val.sizes())};
}

void check_power_of_two(const at::Tensor& scale, const at::Tensor& zero_point, int64_t quant_min, int64_t quant_max) {
  check_dtype(kPowerOfTwoOp, "scale", scale, at::kFloat);
  check_dtype(kPowerOfTwoOp, "zero_point", zero_point, at::kFloat);
  check_same_device(kPowerOfTwoOp, "zero_point", zero_point, scale);
  TORCH_CHECK(scale.sym_sizes() == zero_point.sym_sizes(), kPowerOfTwoOp, ": zero_point must have the shape of scale, ",
              scale.sym_sizes(), ", got ", zero_point.sym_sizes());
  check_range(kPowerOfTwoOp, quant_min, quant_max);
}

QParamTensors power_of_two_meta(const at::Tensor& scale, const at::Tensor& zero_point, bool /*symmetric*/,
                                int64_t quant_min, int64_t quant_max) {
  check_power_of_two(scale, zero_point, quant_min, quant_max);
  return {at::empty_symint(scale.sym_sizes(), scale.options()), at::empty_symint(scale.sym_sizes(), scale.options())};
}

QParamTensors power_of_two_cpu(const at::Tensor& scale, const at::Tensor& zero_point, bool symmetric, int64_t quant_min,
                               int64_t quant_max) {
  check_power_of_two(scale, zero_point, quant_min, quant_max);
  const at::Tensor scales = scale.contiguous();
  const at::Tensor zero_points = zero_point.contiguous();
  const auto* from_scale = scales.const_data_ptr<float>();
  const auto* from_zero_point = zero_points.const_data_ptr<float>();
  check_scale_values(kPowerOfTwoOp, from_scale, scales.numel());
  check_zero_point_values(kPowerOfTwoOp, from_zero_point, scales.numel());
  at::Tensor new_scale = at::empty(scale.sizes(), scale.options());
  at::Tensor new_zero_point = at::empty(scale.sizes(), scale.options());
  auto* s = new_scale.mutable_data_ptr<float>();
  auto* z = new_zero_point.mutable_data_ptr<float>();
  const auto range = to_range(quant_min, quant_max);
  for (int64_t i = 0; i < scales.numel(); ++i) {
    const auto chosen = numerics::power_of_two_qparams({from_scale[i], from_zero_point[i]}, symmetric, range);
    s[i] = chosen.scale;
    z[i] = chosen.zero_point;
  }
  return {new_scale, new_zero_point};
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(torchquant, m) {
  m.def(
      "choose_qparams(Tensor x, *, int? axis=None, int? group_size=None, bool symmetric, int quant_min, int quant_max) "
      "-> (Tensor scale, Tensor zero_point)",
      {at::Tag::pt2_compliant_tag});
  m.def(
      "qparams_from_min_max(Tensor min_val, Tensor max_val, *, bool symmetric, int quant_min, int quant_max) -> "
      "(Tensor scale, Tensor zero_point)",
      {at::Tag::pt2_compliant_tag});
  m.def(
      "power_of_two_qparams(Tensor scale, Tensor zero_point, *, bool symmetric, int quant_min, int quant_max) -> "
      "(Tensor new_scale, Tensor new_zero_point)",
      {at::Tag::pt2_compliant_tag});
}
TORCH_LIBRARY_IMPL(torchquant, CPU, m) {
  m.impl(kChooseOp, choose_cpu);
  m.impl(kMinMaxOp, min_max_cpu);
  m.impl(kPowerOfTwoOp, power_of_two_cpu);
}
TORCH_LIBRARY_IMPL(torchquant, Meta, m) {
  m.impl(kChooseOp, choose_meta);
  m.impl(kMinMaxOp, min_max_meta);
  m.impl(kPowerOfTwoOp, power_of_two_meta);
}
TORCH_LIBRARY_IMPL(torchquant, Autograd, m) {
  m.impl(kChooseOp, NoGradient<choose_qparams>::call);
  m.impl(kMinMaxOp, NoGradient<qparams_from_min_max>::call);
  m.impl(kPowerOfTwoOp, NoGradient<power_of_two_qparams>::call);
}

}  // namespace ops
}  // namespace torchquant
