// fused_observe_fake_quantize: a training step's observe, choose parameters and fake-quantize in one op. It mutates the
// observer state and the parameters that it is given.
#include <ATen/ops/empty_like.h>
#include <torch/library.h>

#include <atomic>

#include "numerics/qparams.h"
#include "ops/checks.h"
#include "ops/dispatch.h"
#include "ops/fake_quantize_cpu.h"
#include "ops/min_max.h"
#include "ops/observer_state.h"
#include "ops/ops.h"
#include "ops/recycled_memory.h"
#include "ops/straight_through.h"

namespace torchquant {

at::Tensor fused_observe_fake_quantize(const at::Tensor& x, const at::Tensor& min_val, const at::Tensor& max_val,
                                       const at::Tensor& nonfinite_count, const at::Tensor& scale,
                                       const at::Tensor& zero_point, double averaging_constant,
                                       std::optional<int64_t> axis, bool symmetric, int64_t quant_min,
                                       int64_t quant_max) {
  static const auto op = ops::find_op<decltype(fused_observe_fake_quantize)>("torchquant::fused_observe_fake_quantize");
  return op.call(x, min_val, max_val, nonfinite_count, scale, zero_point, averaging_constant, axis, symmetric,
                 quant_min, quant_max);
}

namespace ops {
namespace {

constexpr const char* kOp = "fused_observe_fake_quantize";

// The tensors that the op overwrites.
struct State {
  const at::Tensor& min_val;
  const at::Tensor& max_val;
  const at::Tensor& nonfinite_count;
  const at::Tensor& scale;
  const at::Tensor& zero_point;
};

void check_state(const at::Tensor& x, const char* argument, const at::Tensor& tensor, at::ScalarType dtype,
                 const c10::SymInt& count) {
  check_dtype(kOp, argument, tensor, dtype);
  check_same_device(kOp, argument, tensor, x);
  TORCH_SYM_CHECK(tensor.sym_numel().sym_eq(count), kOp, ": ", argument, " must have ", count,
                  " element(s), got shape ", tensor.sym_sizes());
  TORCH_CHECK(tensor.is_contiguous(), kOp, ": ", argument, " must be contiguous, got strides ", tensor.sym_strides());
}

void check(const at::Tensor& x, const State& state, double averaging_constant, const Granularity& granularity,
           int64_t quant_min, int64_t quant_max) {
  check_float(kOp, "x", x);
  check_range(kOp, quant_min, quant_max);
  check_granularity(kOp, x, granularity);
  check_averaging_constant(kOp, averaging_constant);
  const c10::SymInt count = granularity.axis ? x.sym_size(*granularity.axis) : c10::SymInt(1);
  check_state(x, "min_val", state.min_val, at::kFloat, count);
  check_state(x, "max_val", state.max_val, at::kFloat, count);
  check_state(x, "nonfinite_count", state.nonfinite_count, at::kLong, 1);
  check_state(x, "scale", state.scale, at::kFloat, count);
  check_state(x, "zero_point", state.zero_point, at::kFloat, count);
}

at::Tensor meta(const at::Tensor& x, const at::Tensor& min_val, const at::Tensor& max_val,
                const at::Tensor& nonfinite_count, const at::Tensor& scale, const at::Tensor& zero_point,
                double averaging_constant, std::optional<int64_t> axis, bool /*symmetric*/, int64_t quant_min,
                int64_t quant_max) {
  check(x, {min_val, max_val, nonfinite_count, scale, zero_point}, averaging_constant, {axis, std::nullopt}, quant_min,
        quant_max);
  return at::empty_like(x);
}

// Moves one channel's range and parameters; whether the values that were seen all lie inside what they can hold.
bool update_channel(int64_t channel, numerics::Range seen, const State& state, float averaging_constant, bool symmetric,
                    numerics::QRange range) {
  float& min_val = state.min_val.mutable_data_ptr<float>()[channel];
  float& max_val = state.max_val.mutable_data_ptr<float>()[channel];
  const numerics::Range running = numerics::moving_average({min_val, max_val}, seen, averaging_constant);
  const auto chosen = numerics::choose_qparams(running.min_val, running.max_val, symmetric, range);
  min_val = running.min_val;
  max_val = running.max_val;
  state.scale.mutable_data_ptr<float>()[channel] = chosen.scale;
  state.zero_point.mutable_data_ptr<float>()[channel] = chosen.zero_point;
  return nothing_clipped(seen, numerics::make_qparams(chosen.scale, chosen.zero_point, range), range);
}

// Whether each channel is one run that the cache holds, as in a weight.
bool channels_fit_the_cache(const Pieces& pieces) {
  return !pieces.rows && pieces.params > 1 && pieces.count() == pieces.params && pieces.length <= kReductionTask;
}

// Channel by channel: the second pass finds it in the cache.
at::Tensor observe_and_quantize_channels(const at::Tensor& dense, const Pieces& pieces, const State& state,
                                         float averaging_constant, bool symmetric, numerics::QRange range) {
  at::Tensor output = empty_like_recycled(dense);
  const auto& kernels = kernels::fake_quantize_kernels();
  const auto type = float_type(dense);
  const int64_t bytes = pieces.length * static_cast<int64_t>(dense.element_size());
  const auto* x = static_cast<const std::byte*>(dense.const_data_ptr());
  auto* y = static_cast<std::byte*>(output.mutable_data_ptr());
  std::atomic<int64_t> nonfinite{0};
  std::atomic<bool> clipped{false};
  at::parallel_for(0, pieces.params, std::max<int64_t>(1, kGrainElements / pieces.length),
                   [&](int64_t first, int64_t last) {
                     for (int64_t i = first; i < last; ++i) {
                       const kernels::MinMax seen = kernels.min_max_run(x + i * bytes, pieces.length, type);
                       const bool inside =
                           update_channel(i, {seen.min_val, seen.max_val}, state, averaging_constant, symmetric, range);
                       const auto params = numerics::make_qparams(state.scale.const_data_ptr<float>()[i],
                                                                  state.zero_point.const_data_ptr<float>()[i], range);
                       kernels.fake_quantize_run(x + i * bytes, y + i * bytes, pieces.length, type, params, range);
                       if (seen.nonfinite != 0) nonfinite += seen.nonfinite;
                       if (!inside) clipped = true;
                     }
                   });
  *state.nonfinite_count.mutable_data_ptr<int64_t>() += nonfinite;
  StraightThrough::tell(nonfinite == 0 && !clipped);
  return output;
}

at::Tensor cpu(const at::Tensor& x, const at::Tensor& min_val, const at::Tensor& max_val,
               const at::Tensor& nonfinite_count, const at::Tensor& scale, const at::Tensor& zero_point,
               double averaging_constant, std::optional<int64_t> axis, bool symmetric, int64_t quant_min,
               int64_t quant_max) {
  const Granularity granularity{axis, std::nullopt};
  const State state{min_val, max_val, nonfinite_count, scale, zero_point};
  check(x, state, averaging_constant, granularity, quant_min, quant_max);
  const auto range = to_range(quant_min, quant_max);
  const auto constant = static_cast<float>(averaging_constant);
  const at::Tensor input = to_dense(x);
  const Pieces pieces = cut_into_pieces(param_layout(input, granularity));
  if (channels_fit_the_cache(pieces)) {
    return observe_and_quantize_channels(input, pieces, state, constant, symmetric, range);
  }
  const ObservedRanges observed = observe_ranges(input, granularity);
  bool inside = observed.nonfinite == 0;
  for (size_t i = 0; i < observed.ranges.size(); ++i) {
    inside &= update_channel(static_cast<int64_t>(i), observed.ranges[i], state, constant, symmetric, range);
  }
  *nonfinite_count.mutable_data_ptr<int64_t>() += observed.nonfinite;
  StraightThrough::tell(inside);
  at::Tensor output = empty_like_recycled(input);
  fake_quantize_into(output, input, CpuQParams(kOp, input, scale, zero_point, granularity, range), range);
  return output;
}

at::Tensor autograd(const at::Tensor& x, const at::Tensor& min_val, const at::Tensor& max_val,
                    const at::Tensor& nonfinite_count, const at::Tensor& scale, const at::Tensor& zero_point,
                    double averaging_constant, std::optional<int64_t> axis, bool symmetric, int64_t quant_min,
                    int64_t quant_max) {
  TORCH_CHECK(
      !scale.requires_grad() && !zero_point.requires_grad(), kOp,
      ": scale and zero_point must not require a gradient, because the op overwrites them; use fake_quantize to "
      "learn them");
  if (needs_node(x)) {
    return StraightThrough::apply(x, StraightThrough::Codes{axis, quant_min, quant_max}, [&] {
      at::AutoDispatchBelowAutograd below_autograd;  // not below ADInplaceOrView, which counts the mutations
      at::Tensor output = fused_observe_fake_quantize(x, min_val, max_val, nonfinite_count, scale, zero_point,
                                                      averaging_constant, axis, symmetric, quant_min, quant_max);
      // Copies: the next forward overwrites these parameters, and it may run before this backward (a module used
      // twice).
      return StraightThrough::Forward{output, scale.clone(), zero_point.clone()};
    });
  }
  at::AutoDispatchBelowAutograd below_autograd;
  return fused_observe_fake_quantize(x, min_val, max_val, nonfinite_count, scale, zero_point, averaging_constant, axis,
                                     symmetric, quant_min, quant_max);
}

at::Tensor count_mutations(const at::Tensor& x, const at::Tensor& min_val, const at::Tensor& max_val,
                           const at::Tensor& nonfinite_count, const at::Tensor& scale, const at::Tensor& zero_point,
                           double averaging_constant, std::optional<int64_t> axis, bool symmetric, int64_t quant_min,
                           int64_t quant_max) {
  at::Tensor output =
      NoGradient<fused_observe_fake_quantize>::call(x, min_val, max_val, nonfinite_count, scale, zero_point,
                                                    averaging_constant, axis, symmetric, quant_min, quant_max);
  bump_versions({min_val, max_val, nonfinite_count, scale, zero_point});
  return output;
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(torchquant, m) {
  m.def(
      "fused_observe_fake_quantize(Tensor x, Tensor(a!) min_val, Tensor(b!) max_val, Tensor(c!) nonfinite_count, "
      "Tensor(d!) scale, Tensor(e!) zero_point, *, float averaging_constant, int? axis=None, bool symmetric, "
      "int quant_min, int quant_max) -> Tensor",
      {at::Tag::pt2_compliant_tag});
}
TORCH_LIBRARY_IMPL(torchquant, CPU, m) { m.impl(kOp, cpu); }
TORCH_LIBRARY_IMPL(torchquant, Meta, m) { m.impl(kOp, meta); }
TORCH_LIBRARY_IMPL(torchquant, Autograd, m) { m.impl(kOp, autograd); }
TORCH_LIBRARY_IMPL(torchquant, ADInplaceOrView, m) { m.impl(kOp, count_mutations); }

}  // namespace ops
}  // namespace torchquant
