// fused_observe_fake_quantize: a training step's observe, choose parameters and fake-quantize in one op. It mutates the
// observer state and the parameters that it is given.
#include <ATen/ops/empty_like.h>
#include <torch/library.h>

#include "numerics/qparams.h"
#include "ops/checks.h"
#include "ops/dispatch.h"
#include "ops/fake_quantize_cpu.h"
#include "ops/min_max.h"
#include "ops/ops.h"

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
  TORCH_SYM_CHECK(tensor.sym_numel().sym_eq(count), kOp, ": ", argument, " must have ", count, " element(s), got shape ",
                  tensor.sym_sizes());
  TORCH_CHECK(tensor.is_contiguous(), kOp, ": ", argument, " must be contiguous, got strides ", tensor.sym_strides());
}

void check(const at::Tensor& x, const State& state, double averaging_constant, const Granularity& granularity,
           int64_t quant_min, int64_t quant_max) {
  check_float(kOp, "x", x);
  check_range(kOp, quant_min, quant_max);
  check_granularity(kOp, x, granularity);
  TORCH_CHECK(averaging_constant > 0.0 && averaging_constant <= 1.0, kOp,
              ": averaging_constant must be greater than 0 and at most 1, got ", averaging_constant);
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

void update_state(const ObservedRanges& observed, const State& state, float averaging_constant, bool symmetric,
                  numerics::QRange range) {
  auto* min_val = state.min_val.mutable_data_ptr<float>();
  auto* max_val = state.max_val.mutable_data_ptr<float>();
  auto* scale = state.scale.mutable_data_ptr<float>();
  auto* zero_point = state.zero_point.mutable_data_ptr<float>();
  for (size_t i = 0; i < observed.ranges.size(); ++i) {
    const numerics::Range seen =
        numerics::moving_average({min_val[i], max_val[i]}, observed.ranges[i], averaging_constant);
    const auto chosen = numerics::choose_qparams(seen.min_val, seen.max_val, symmetric, range);
    min_val[i] = seen.min_val;
    max_val[i] = seen.max_val;
    scale[i] = chosen.scale;
    zero_point[i] = chosen.zero_point;
  }
  *state.nonfinite_count.mutable_data_ptr<int64_t>() += observed.nonfinite;
}

at::Tensor cpu(const at::Tensor& x, const at::Tensor& min_val, const at::Tensor& max_val,
               const at::Tensor& nonfinite_count, const at::Tensor& scale, const at::Tensor& zero_point,
               double averaging_constant, std::optional<int64_t> axis, bool symmetric, int64_t quant_min,
               int64_t quant_max) {
  const Granularity granularity{axis, std::nullopt};
  const State state{min_val, max_val, nonfinite_count, scale, zero_point};
  check(x, state, averaging_constant, granularity, quant_min, quant_max);
  const auto range = to_range(quant_min, quant_max);
  const at::Tensor input = to_dense(x);
  update_state(observe_ranges(input, granularity), state, static_cast<float>(averaging_constant), symmetric, range);
  return fake_quantize_dense(input, CpuQParams(kOp, input, scale, zero_point, granularity, range), range);
}

class Function : public torch::autograd::Function<Function> {
 public:
  static constexpr bool is_traceable = true;  // by compiled autograd

  static at::Tensor forward(torch::autograd::AutogradContext* ctx, const at::Tensor& x, const State& state,
                            double averaging_constant, std::optional<int64_t> axis, bool symmetric, int64_t quant_min,
                            int64_t quant_max) {
    at::AutoDispatchBelowAutograd below_autograd;  // not below ADInplaceOrView, which counts the mutations
    at::Tensor output =
        fused_observe_fake_quantize(x, state.min_val, state.max_val, state.nonfinite_count, state.scale,
                                    state.zero_point, averaging_constant, axis, symmetric, quant_min, quant_max);
    // Copies: the next forward overwrites these parameters, and it may run before this backward (a module used twice).
    ctx->save_for_backward({x, state.scale.clone(), state.zero_point.clone()});
    ctx->saved_data["axis"] = axis;
    ctx->saved_data["quant_min"] = quant_min;
    ctx->saved_data["quant_max"] = quant_max;
    return output;
  }

  static torch::autograd::variable_list backward(torch::autograd::AutogradContext* ctx,
                                                 const torch::autograd::variable_list& grads) {
    const auto saved = ctx->get_saved_variables();
    torch::autograd::variable_list result(7);
    result[0] = fake_quantize_backward(grads[0], saved[0], saved[1], saved[2],
                                       ctx->saved_data["axis"].toOptional<int64_t>(), std::nullopt,
                                       ctx->saved_data["quant_min"].toInt(), ctx->saved_data["quant_max"].toInt());
    return result;
  }
};

at::Tensor autograd(const at::Tensor& x, const at::Tensor& min_val, const at::Tensor& max_val,
                    const at::Tensor& nonfinite_count, const at::Tensor& scale, const at::Tensor& zero_point,
                    double averaging_constant, std::optional<int64_t> axis, bool symmetric, int64_t quant_min,
                    int64_t quant_max) {
  TORCH_CHECK(!scale.requires_grad() && !zero_point.requires_grad(), kOp,
              ": scale and zero_point must not require a gradient, because the op overwrites them; use fake_quantize to "
              "learn them");
  if (needs_node(x)) {
    return Function::apply(x, State{min_val, max_val, nonfinite_count, scale, zero_point}, averaging_constant, axis,
                           symmetric, quant_min, quant_max);
  }
  at::AutoDispatchBelowAutograd below_autograd;
  return fused_observe_fake_quantize(x, min_val, max_val, nonfinite_count, scale, zero_point, averaging_constant, axis,
                                     symmetric, quant_min, quant_max);
}

at::Tensor count_mutations(const at::Tensor& x, const at::Tensor& min_val, const at::Tensor& max_val,
                           const at::Tensor& nonfinite_count, const at::Tensor& scale, const at::Tensor& zero_point,
                           double averaging_constant, std::optional<int64_t> axis, bool symmetric, int64_t quant_min,
                           int64_t quant_max) {
  at::Tensor output = NoGradient<fused_observe_fake_quantize>::call(x, min_val, max_val, nonfinite_count, scale,
                                                                    zero_point, averaging_constant, axis, symmetric,
                                                                    quant_min, quant_max);
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
