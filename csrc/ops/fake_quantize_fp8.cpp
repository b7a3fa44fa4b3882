// fake_quantize_fp8: rounds values to what 8-bit floats can hold, with a straight-through gradient; the op that
// training runs and that the converter looks for. See float8.h.
#include <ATen/ops/empty.h>
#include <ATen/ops/where.h>
#include <torch/library.h>

#include "numerics/float8.h"
#include "ops/dispatch.h"
#include "ops/float8.h"

namespace torchquant {

at::Tensor fake_quantize_fp8(const at::Tensor& x, const std::optional<at::Tensor>& scale, at::ScalarType dtype) {
  static const auto op = ops::find_op<decltype(fake_quantize_fp8)>("torchquant::fake_quantize_fp8");
  return op.call(x, scale, dtype);
}

at::Tensor fake_quantize_fp8_backward(const at::Tensor& grad, const at::Tensor& x,
                                      const std::optional<at::Tensor>& scale, at::ScalarType dtype) {
  static const auto op = ops::find_op<decltype(fake_quantize_fp8_backward)>("torchquant::fake_quantize_fp8_backward");
  return op.call(grad, x, scale, dtype);
}

namespace ops {
namespace {

constexpr const char* kOp = "fake_quantize_fp8";
constexpr const char* kBackward = "fake_quantize_fp8_backward";

at::Tensor meta(const at::Tensor& x, const std::optional<at::Tensor>& scale, at::ScalarType dtype) {
  check_float8(kOp, "dtype", dtype);
  check_rows(kOp, x, scale);
  return at::empty_symint(x.sym_sizes(), x.options());
}

at::Tensor cpu(const at::Tensor& x, const std::optional<at::Tensor>& scale, at::ScalarType dtype) {
  meta(x, scale, dtype);
  const auto type = check_float8(kOp, "dtype", dtype);
  const at::Tensor scales = scale.has_value() ? scale->contiguous() : at::Tensor();
  if (scales.defined()) check_scale_values(kOp, scales.const_data_ptr<float>(), scales.numel());
  const CpuRows rows(x);
  const at::Tensor y = at::empty(x.sizes(), x.options().dtype(at::kFloat));
  float* to = y.mutable_data_ptr<float>();
  const auto& kernels = kernels::float8_kernels();
  const float* given = float_data_or_null(scales);
  for_each_run(rows, !scales.defined() || scales.numel() > 1, [&](int64_t i, int64_t first, int64_t n) {
    const float row_scale = given != nullptr ? given[i] : kernels.scale_of(rows.data() + first, n, type);
    kernels.fake_quantize(rows.data() + first, n, row_scale, type, to + first);
  });
  return y.to(x.scalar_type());
}

// Of a row's own scale, every finite value is inside. A composition of ATen ops, for every device.
at::Tensor backward(const at::Tensor& grad, const at::Tensor& x, const std::optional<at::Tensor>& scale,
                    at::ScalarType dtype) {
  const auto type = check_float8(kBackward, "dtype", dtype);
  check_float(kBackward, "grad", grad);
  check_rows(kBackward, x, scale);
  check_shape(kBackward, "grad", grad, x.sym_sizes());
  check_same_device(kBackward, "grad", grad, x);
  at::Tensor magnitude = x.to(at::kFloat).abs();
  double last_inside = numerics::kMaxFloat;
  if (scale.has_value()) {
    const at::Tensor inverse = scale->reciprocal();
    magnitude = magnitude.mul(scale->sym_numel() == 1 ? inverse.reshape({}) : inverse.unsqueeze(-1));
    last_inside =
        type == kernels::Float8Type::kE4M3 ? numerics::Float8E4M3::kLastInside : numerics::Float8E5M2::kLastInside;
  }
  return at::where(magnitude.le(last_inside), grad, 0.0).contiguous();
}

class Function : public torch::autograd::Function<Function> {
 public:
  static constexpr bool is_traceable = true;  // by compiled autograd

  static at::Tensor forward(torch::autograd::AutogradContext* ctx, const at::Tensor& x,
                            const std::optional<at::Tensor>& scale, at::ScalarType dtype) {
    at::AutoDispatchBelowADInplaceOrView below_autograd;
    // x is alive anyway: backward computes the mask again instead of writing one here.
    ctx->save_for_backward({x, scale.value_or(at::Tensor())});
    ctx->saved_data["dtype"] = static_cast<int64_t>(dtype);
    return fake_quantize_fp8(x, scale, dtype);
  }

  static torch::autograd::variable_list backward(torch::autograd::AutogradContext* ctx,
                                                 const torch::autograd::variable_list& grads) {
    const auto saved = ctx->get_saved_variables();
    const auto dtype = static_cast<at::ScalarType>(ctx->saved_data["dtype"].toInt());
    const auto scale = saved[1].defined() ? std::optional<at::Tensor>(saved[1]) : std::nullopt;
    return {fake_quantize_fp8_backward(grads[0], saved[0], scale, dtype), {}, {}};
  }
};

at::Tensor autograd(const at::Tensor& x, const std::optional<at::Tensor>& scale, at::ScalarType dtype) {
  if (needs_node(x)) return Function::apply(x, scale, dtype);
  return NoGradient<fake_quantize_fp8>::call(x, scale, dtype);
}

at::Tensor backward_autograd(const at::Tensor& grad, const at::Tensor& x, const std::optional<at::Tensor>& scale,
                             at::ScalarType dtype) {
  const auto run = [&] { return NoGradient<fake_quantize_fp8_backward>::call(grad, x, scale, dtype); };
  if (!needs_node(grad, x)) return run();
  return NoDerivative::apply(std::string(kBackward), at::TensorList{grad, x},
                             [&] { return torch::autograd::variable_list{run()}; })[0];
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(torchquant, m) {
  define(m, "fake_quantize_fp8(Tensor x, Tensor? scale=None, *, ScalarType dtype) -> Tensor");
  define(m, "fake_quantize_fp8_backward(Tensor grad, Tensor x, Tensor? scale=None, *, ScalarType dtype) -> Tensor");
}
TORCH_LIBRARY_IMPL(torchquant, CPU, m) {
  m.impl(kOp, cpu);
  m.impl(kBackward, backward);
}
TORCH_LIBRARY_IMPL(torchquant, CUDA, m) { m.impl(kBackward, backward); }
TORCH_LIBRARY_IMPL(torchquant, Meta, m) {
  m.impl(kOp, meta);
  m.impl(kBackward, backward);
}
TORCH_LIBRARY_IMPL(torchquant, Autograd, m) {
  m.impl(kOp, autograd);
  m.impl(kBackward, backward_autograd);
}

}  // namespace ops
}  // namespace torchquant
