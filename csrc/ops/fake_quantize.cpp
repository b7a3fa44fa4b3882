// fake_quantize: quantize and dequantize in one pass, with straight-through and LSQ / LSQ+ gradients. The op that
// training runs and that the converter looks for; its gradients are the ops of ops/fake_quantize_backward.cpp.
#include <ATen/ops/empty_like.h>
#include <torch/library.h>

#include "ops/checks.h"
#include "ops/dispatch.h"
#include "ops/fake_quantize_cpu.h"
#include "ops/granularity.h"
#include "ops/ops.h"

namespace torchquant {

at::Tensor fake_quantize(const at::Tensor& x, const at::Tensor& scale, const at::Tensor& zero_point,
                         std::optional<int64_t> axis, std::optional<int64_t> group_size, int64_t quant_min,
                         int64_t quant_max, double grad_factor) {
  static const auto op = ops::find_op<decltype(fake_quantize)>("torchquant::fake_quantize");
  return op.call(x, scale, zero_point, axis, group_size, quant_min, quant_max, grad_factor);
}

namespace ops {

void fake_quantize_into(const at::Tensor& output, const at::Tensor& dense, const CpuQParams& params,
                        numerics::QRange range) {
  const auto& kernels = kernels::fake_quantize_kernels();
  const auto type = float_type(dense);
  const auto size = static_cast<int64_t>(dense.element_size());
  const auto* x = static_cast<const std::byte*>(dense.const_data_ptr());
  auto* y = static_cast<std::byte*>(output.mutable_data_ptr());
  for_each_piece(
      params,
      [&](int64_t begin, int64_t n, numerics::QParams p) {
        kernels.fake_quantize_run(x + begin * size, y + begin * size, n, type, p, range);
      },
      [&](int64_t begin, int64_t n, kernels::QParamArrays p) {
        kernels.fake_quantize_each(x + begin * size, y + begin * size, n, type, p, range);
      });
}

namespace {

constexpr const char* kOp = "fake_quantize";

void check(const at::Tensor& x, const at::Tensor& scale, const at::Tensor& zero_point, const Granularity& granularity,
           int64_t quant_min, int64_t quant_max) {
  check_float(kOp, "x", x);
  check_range(kOp, quant_min, quant_max);
  check_granularity(kOp, x, granularity);
  check_qparams(kOp, x, scale, zero_point, granularity);
}

at::Tensor meta(const at::Tensor& x, const at::Tensor& scale, const at::Tensor& zero_point, std::optional<int64_t> axis,
                std::optional<int64_t> group_size, int64_t quant_min, int64_t quant_max, double /*grad_factor*/) {
  check(x, scale, zero_point, {axis, group_size}, quant_min, quant_max);
  return at::empty_like(x);
}

at::Tensor cpu(const at::Tensor& x, const at::Tensor& scale, const at::Tensor& zero_point, std::optional<int64_t> axis,
               std::optional<int64_t> group_size, int64_t quant_min, int64_t quant_max, double /*grad_factor*/) {
  const Granularity granularity{axis, group_size};
  check(x, scale, zero_point, granularity, quant_min, quant_max);
  const auto range = to_range(quant_min, quant_max);
  const at::Tensor input = to_dense(x);
  const CpuQParams params(kOp, input, scale, zero_point, granularity, range);
  at::Tensor output = at::empty_like(input);
  fake_quantize_into(output, input, params, range);
  return output;
}

class Function : public torch::autograd::Function<Function> {
 public:
  static constexpr bool is_traceable = true;  // by compiled autograd

  static at::Tensor forward(torch::autograd::AutogradContext* ctx, const at::Tensor& x, const at::Tensor& scale,
                            const at::Tensor& zero_point, std::optional<int64_t> axis,
                            std::optional<int64_t> group_size, int64_t quant_min, int64_t quant_max,
                            double grad_factor) {
    at::AutoDispatchBelowADInplaceOrView below_autograd;
    // x is alive anyway: backward computes the mask again instead of writing one here.
    ctx->save_for_backward({x, scale, zero_point});
    ctx->saved_data["axis"] = axis;
    ctx->saved_data["group_size"] = group_size;
    ctx->saved_data["quant_min"] = quant_min;
    ctx->saved_data["quant_max"] = quant_max;
    ctx->saved_data["grad_factor"] = grad_factor;
    return fake_quantize(x, scale, zero_point, axis, group_size, quant_min, quant_max, grad_factor);
  }

  static torch::autograd::variable_list backward(torch::autograd::AutogradContext* ctx,
                                                 const torch::autograd::variable_list& grads) {
    const auto saved = ctx->get_saved_variables();
    const auto axis = ctx->saved_data["axis"].toOptional<int64_t>();
    const auto group_size = ctx->saved_data["group_size"].toOptional<int64_t>();
    const int64_t quant_min = ctx->saved_data["quant_min"].toInt();
    const int64_t quant_max = ctx->saved_data["quant_max"].toInt();
    torch::autograd::variable_list result(8);
    if (ctx->needs_input_grad(1) || ctx->needs_input_grad(2)) {
      std::tie(result[0], result[1], result[2]) =
          fake_quantize_learnable_backward(grads[0], saved[0], saved[1], saved[2], axis, group_size, quant_min,
                                           quant_max, ctx->saved_data["grad_factor"].toDouble());
    } else {
      result[0] =
          fake_quantize_backward(grads[0], saved[0], saved[1], saved[2], axis, group_size, quant_min, quant_max);
    }
    return result;
  }
};

at::Tensor autograd(const at::Tensor& x, const at::Tensor& scale, const at::Tensor& zero_point,
                    std::optional<int64_t> axis, std::optional<int64_t> group_size, int64_t quant_min,
                    int64_t quant_max, double grad_factor) {
  if (needs_node(x, scale, zero_point)) {
    return Function::apply(x, scale, zero_point, axis, group_size, quant_min, quant_max, grad_factor);
  }
  at::AutoDispatchBelowADInplaceOrView below_autograd;
  return fake_quantize(x, scale, zero_point, axis, group_size, quant_min, quant_max, grad_factor);
}

// x keeps the dtype that autocast gave it; a scale that autocast lowered goes back to fp32.
at::Tensor autocast(const at::Tensor& x, const at::Tensor& scale, const at::Tensor& zero_point,
                    std::optional<int64_t> axis, std::optional<int64_t> group_size, int64_t quant_min,
                    int64_t quant_max, double grad_factor) {
  c10::impl::ExcludeDispatchKeyGuard no_autocast(c10::autocast_dispatch_keyset);
  return fake_quantize(x, to_fp32(scale), to_fp32(zero_point), axis, group_size, quant_min, quant_max, grad_factor);
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(torchquant, m) {
  m.def(
      "fake_quantize(Tensor x, Tensor scale, Tensor zero_point, *, int? axis=None, int? group_size=None, int "
      "quant_min, "
      "int quant_max, float grad_factor=1.0) -> Tensor",
      {at::Tag::pt2_compliant_tag});
}
TORCH_LIBRARY_IMPL(torchquant, CPU, m) { m.impl(kOp, cpu); }
TORCH_LIBRARY_IMPL(torchquant, Meta, m) { m.impl(kOp, meta); }
TORCH_LIBRARY_IMPL(torchquant, Autograd, m) { m.impl(kOp, autograd); }
TORCH_LIBRARY_IMPL(torchquant, AutocastCPU, m) { m.impl(kOp, autocast); }
TORCH_LIBRARY_IMPL(torchquant, AutocastCUDA, m) { m.impl(kOp, autocast); }

}  // namespace ops
}  // namespace torchquant
