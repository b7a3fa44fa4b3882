// Fake-quantization that only training uses: noisy_fake_quantize (stochastic rounding, pseudo-quantization noise) and
// pact_fake_quantize (learned clipping). Compositions of ATen ops around fake_quantize, so that gradients, devices and
// compilers come from those; a converted model rounds to nearest and holds none of them.
#include <ATen/TensorOperators.h>
#include <ATen/ops/clamp.h>
#include <ATen/ops/maximum.h>
#include <ATen/ops/repeat_interleave.h>
#include <c10/core/WrapDimMinimal.h>
#include <torch/library.h>

#include "ops/checks.h"
#include "ops/dispatch.h"
#include "ops/granularity.h"
#include "ops/ops.h"

namespace torchquant {

at::Tensor noisy_fake_quantize(const at::Tensor& x, const at::Tensor& noise, const at::Tensor& scale,
                               const at::Tensor& zero_point, std::optional<int64_t> axis,
                               std::optional<int64_t> group_size, int64_t quant_min, int64_t quant_max, bool round) {
  static const auto op = ops::find_op<decltype(noisy_fake_quantize)>("torchquant::noisy_fake_quantize");
  return op.call(x, noise, scale, zero_point, axis, group_size, quant_min, quant_max, round);
}

at::Tensor pact_fake_quantize(const at::Tensor& x, const at::Tensor& clip, const at::Tensor& zero_point,
                              int64_t quant_min, int64_t quant_max) {
  static const auto op = ops::find_op<decltype(pact_fake_quantize)>("torchquant::pact_fake_quantize");
  return op.call(x, clip, zero_point, quant_min, quant_max);
}

at::Tensor pact_scale(const at::Tensor& clip, const at::Tensor& zero_point, int64_t quant_min, int64_t quant_max) {
  static const auto op = ops::find_op<decltype(pact_scale)>("torchquant::pact_scale");
  return op.call(clip, zero_point, quant_min, quant_max);
}

at::Tensor pact_clip(const at::Tensor& scale, const at::Tensor& zero_point, int64_t quant_min, int64_t quant_max) {
  static const auto op = ops::find_op<decltype(pact_clip)>("torchquant::pact_clip");
  return op.call(scale, zero_point, quant_min, quant_max);
}

namespace ops {
namespace {

constexpr const char* kNoisyOp = "noisy_fake_quantize";
constexpr const char* kPactOp = "pact_fake_quantize";
constexpr const char* kPactScaleOp = "pact_scale";
constexpr const char* kPactClipOp = "pact_clip";

// Parameters in a shape that broadcasts over x.
at::Tensor over(const at::Tensor& params, const at::Tensor& x, const Granularity& granularity) {
  if (!granularity.axis) return params.reshape({});
  const int64_t axis = c10::maybe_wrap_dim(*granularity.axis, x.dim());
  if (granularity.group_size) return at::repeat_interleave(params, *granularity.group_size, axis);
  c10::SymDimVector shape(x.dim(), 1);
  shape[axis] = x.sym_size(axis);
  return params.reshape_symint(shape);
}

at::Tensor noisy(const at::Tensor& x, const at::Tensor& noise, const at::Tensor& scale, const at::Tensor& zero_point,
                 std::optional<int64_t> axis, std::optional<int64_t> group_size, int64_t quant_min, int64_t quant_max,
                 bool round) {
  const Granularity granularity{axis, group_size};
  check_float(kNoisyOp, "x", x);
  check_range(kNoisyOp, quant_min, quant_max);
  check_granularity(kNoisyOp, x, granularity);
  check_qparams(kNoisyOp, x, scale, zero_point, granularity);
  check_dtype(kNoisyOp, "noise", noise, at::kFloat);
  check_same_device(kNoisyOp, "noise", noise, x);
  TORCH_CHECK(noise.sym_sizes() == x.sym_sizes(), kNoisyOp, ": noise must have the shape of x, ", x.sym_sizes(),
              ", got ", noise.sym_sizes());
  TORCH_CHECK(!scale.requires_grad() && !zero_point.requires_grad(), kNoisyOp,
              ": scale and zero_point must not require a gradient; use fake_quantize to learn them");
  const at::Tensor step = over(scale, x, granularity);
  // In fp32: a bf16 sum would round most of the noise away. Zero has a code of its own, so rounding never moves it.
  const at::Tensor noisy_x = x.to(at::kFloat) + (noise * step).masked_fill(x == 0, 0.0);
  if (round) {
    return fake_quantize(noisy_x, scale, zero_point, axis, group_size, quant_min, quant_max).to(x.scalar_type());
  }
  const at::Tensor offset = over(zero_point, x, granularity);
  return at::clamp(noisy_x, (quant_min - offset) * step, (quant_max - offset) * step).to(x.scalar_type());
}

void check_pact(const char* op, const char* argument, const at::Tensor& learned, const at::Tensor& zero_point,
                int64_t quant_min, int64_t quant_max) {
  check_range(op, quant_min, quant_max);
  check_dtype(op, argument, learned, at::kFloat);
  check_dtype(op, "zero_point", zero_point, at::kFloat);
  check_same_device(op, "zero_point", zero_point, learned);
  TORCH_CHECK(learned.sym_sizes() == zero_point.sym_sizes(), op, ": zero_point must have the shape of ", argument, ", ",
              learned.sym_sizes(), ", got ", zero_point.sym_sizes());
}

// Steps from zero to the code that is farthest from it. (Of values that are never negative all 2^bits - 1: there the
// clipping value is the alpha of Choi et al.)
at::Tensor steps(const at::Tensor& zero_point, int64_t quant_min, int64_t quant_max) {
  return at::maximum(quant_max - zero_point, zero_point - quant_min);
}

at::Tensor scale_of_clip(const at::Tensor& clip, const at::Tensor& zero_point, int64_t quant_min, int64_t quant_max) {
  check_pact(kPactScaleOp, "clip", clip, zero_point, quant_min, quant_max);
  return clip.detach() / steps(zero_point, quant_min, quant_max);
}

at::Tensor clip_of_scale(const at::Tensor& scale, const at::Tensor& zero_point, int64_t quant_min, int64_t quant_max) {
  check_pact(kPactClipOp, "scale", scale, zero_point, quant_min, quant_max);
  return scale.detach() * steps(zero_point, quant_min, quant_max);
}

at::Tensor pact(const at::Tensor& x, const at::Tensor& clip, const at::Tensor& zero_point, int64_t quant_min,
                int64_t quant_max) {
  check_float(kPactOp, "x", x);
  check_pact(kPactOp, "clip", clip, zero_point, quant_min, quant_max);
  TORCH_CHECK(clip.sym_numel() == 1, kPactOp, ": clip must have one element, got shape ", clip.sym_sizes());
  check_same_device(kPactOp, "clip", clip, x);
  const at::Tensor farthest = steps(zero_point, quant_min, quant_max);
  const at::Tensor low = clip * ((quant_min - zero_point) / farthest);
  const at::Tensor high = clip * ((quant_max - zero_point) / farthest);
  // The clamp carries the gradients of what lies beyond the range; all that it gives is inside, where rounding passes
  // them on.
  const at::Tensor clipped = at::clamp(x.to(at::kFloat), low.reshape({}), high.reshape({}));
  return fake_quantize(clipped, clip.detach() / farthest, zero_point, std::nullopt, std::nullopt, quant_min, quant_max)
      .to(x.scalar_type());
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(torchquant, m) {
  m.def(
      "noisy_fake_quantize(Tensor x, Tensor noise, Tensor scale, Tensor zero_point, *, int? axis=None, "
      "int? group_size=None, int quant_min, int quant_max, bool round) -> Tensor",
      {at::Tag::pt2_compliant_tag});
  m.def("pact_fake_quantize(Tensor x, Tensor clip, Tensor zero_point, *, int quant_min, int quant_max) -> Tensor",
        {at::Tag::pt2_compliant_tag});
  m.def("pact_scale(Tensor clip, Tensor zero_point, *, int quant_min, int quant_max) -> Tensor",
        {at::Tag::pt2_compliant_tag});
  m.def("pact_clip(Tensor scale, Tensor zero_point, *, int quant_min, int quant_max) -> Tensor",
        {at::Tag::pt2_compliant_tag});
}
TORCH_LIBRARY_IMPL(torchquant, CompositeImplicitAutograd, m) {
  m.impl(kNoisyOp, noisy);
  m.impl(kPactOp, pact);
  m.impl(kPactScaleOp, scale_of_clip);
  m.impl(kPactClipOp, clip_of_scale);
}

}  // namespace ops
}  // namespace torchquant
