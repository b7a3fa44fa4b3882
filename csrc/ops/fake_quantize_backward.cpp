// Gradients of fake_quantize as ops of their own, so that each stays one node in a compiled backward graph:
// fake_quantize_backward (straight through) and fake_quantize_learnable_backward (LSQ / LSQ+ for scale and zero point).
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <torch/library.h>

#include "ops/checks.h"
#include "ops/dispatch.h"
#include "ops/granularity.h"
#include "ops/ops.h"

namespace torchquant {

at::Tensor fake_quantize_backward(const at::Tensor& grad, const at::Tensor& x, const at::Tensor& scale,
                                  const at::Tensor& zero_point, std::optional<int64_t> axis,
                                  std::optional<int64_t> group_size, int64_t quant_min, int64_t quant_max) {
  static const auto op = ops::find_op<decltype(fake_quantize_backward)>("torchquant::fake_quantize_backward");
  return op.call(grad, x, scale, zero_point, axis, group_size, quant_min, quant_max);
}

std::tuple<at::Tensor, at::Tensor, at::Tensor> fake_quantize_learnable_backward(
    const at::Tensor& grad, const at::Tensor& x, const at::Tensor& scale, const at::Tensor& zero_point,
    std::optional<int64_t> axis, std::optional<int64_t> group_size, int64_t quant_min, int64_t quant_max,
    double grad_factor) {
  static const auto op =
      ops::find_op<decltype(fake_quantize_learnable_backward)>("torchquant::fake_quantize_learnable_backward");
  return op.call(grad, x, scale, zero_point, axis, group_size, quant_min, quant_max, grad_factor);
}

namespace ops {
namespace {

using kernels::QParamArrays;
using kernels::QParamGrads;
using Grads = std::tuple<at::Tensor, at::Tensor, at::Tensor>;

constexpr const char* kSteOp = "fake_quantize_backward";
constexpr const char* kLearnableOp = "fake_quantize_learnable_backward";

void check(const char* op, const at::Tensor& grad, const at::Tensor& x, const at::Tensor& scale,
           const at::Tensor& zero_point, const Granularity& granularity, int64_t quant_min, int64_t quant_max) {
  check_float(op, "x", x);
  check_dtype(op, "grad", grad, x.scalar_type());
  check_same_device(op, "grad", grad, x);
  TORCH_CHECK(grad.sym_sizes() == x.sym_sizes(), op, ": grad must have the shape of x, ", x.sym_sizes(), ", got ",
              grad.sym_sizes());
  check_range(op, quant_min, quant_max);
  check_granularity(op, x, granularity);
  check_qparams(op, x, scale, zero_point, granularity);
}

// What both CPU kernels walk over: x and grad in one memory order, and the result beside them.
struct Operands {
  at::Tensor x;
  at::Tensor grad;
  at::Tensor grad_x;
  kernels::FloatType type;

  Operands(const at::Tensor& raw_grad, const at::Tensor& raw_x)
      : x(to_dense(raw_x)), grad(with_layout_of(raw_grad, x)), grad_x(at::empty_like(x)), type(float_type(x)) {}

  const void* grad_at(int64_t i) const { return static_cast<const std::byte*>(grad.const_data_ptr()) + bytes(i); }
  const void* x_at(int64_t i) const { return static_cast<const std::byte*>(x.const_data_ptr()) + bytes(i); }
  void* grad_x_at(int64_t i) const { return static_cast<std::byte*>(grad_x.mutable_data_ptr()) + bytes(i); }
  int64_t bytes(int64_t i) const { return i * static_cast<int64_t>(x.element_size()); }
};

at::Tensor ste_meta(const at::Tensor& grad, const at::Tensor& x, const at::Tensor& scale, const at::Tensor& zero_point,
                    std::optional<int64_t> axis, std::optional<int64_t> group_size, int64_t quant_min,
                    int64_t quant_max) {
  check(kSteOp, grad, x, scale, zero_point, {axis, group_size}, quant_min, quant_max);
  return at::empty_like(x);
}

at::Tensor ste_cpu(const at::Tensor& grad, const at::Tensor& x, const at::Tensor& scale, const at::Tensor& zero_point,
                   std::optional<int64_t> axis, std::optional<int64_t> group_size, int64_t quant_min,
                   int64_t quant_max) {
  const Granularity granularity{axis, group_size};
  check(kSteOp, grad, x, scale, zero_point, granularity, quant_min, quant_max);
  const auto range = to_range(quant_min, quant_max);
  const Operands io(grad, x);
  const CpuQParams params(kSteOp, io.x, scale, zero_point, granularity, range);
  const auto& kernels = kernels::fake_quantize_kernels();
  for_each_piece(
      params,
      [&](int64_t i, int64_t n, numerics::QParams p) {
        kernels.backward_run(io.grad_at(i), io.x_at(i), io.grad_x_at(i), n, io.type, p, range);
      },
      [&](int64_t i, int64_t n, QParamArrays p) {
        kernels.backward_each(io.grad_at(i), io.x_at(i), io.grad_x_at(i), n, io.type, p, range);
      });
  return io.grad_x;
}

Grads learnable_meta(const at::Tensor& grad, const at::Tensor& x, const at::Tensor& scale, const at::Tensor& zero_point,
                     std::optional<int64_t> axis, std::optional<int64_t> group_size, int64_t quant_min,
                     int64_t quant_max, double /*grad_factor*/) {
  check(kLearnableOp, grad, x, scale, zero_point, {axis, group_size}, quant_min, quant_max);
  const auto fp32 = x.options().dtype(at::kFloat);
  return {at::empty_like(x), at::empty_symint(scale.sym_sizes(), fp32), at::empty_symint(zero_point.sym_sizes(), fp32)};
}

// Writes grad_x and returns the sums of each parameter, in memory order.
std::vector<QParamGrads> learnable_sums(const Operands& io, const CpuQParams& params, numerics::QRange range) {
  const auto& kernels = kernels::fake_quantize_kernels();
  const Pieces& pieces = params.pieces();
  std::vector<QParamGrads> sums(pieces.params, QParamGrads{0.0, 0.0});
  if (!pieces.rows) {
    reduce_runs<QParamGrads>(
        pieces,
        [&](int64_t i, int64_t n, int64_t param) {
          return kernels.learnable_backward_run(io.grad_at(i), io.x_at(i), io.grad_x_at(i), n, io.type,
                                                params.param(param), range);
        },
        [&](int64_t param, QParamGrads part) {
          sums[param].scale += part.scale;
          sums[param].zero_point += part.zero_point;
        });
    return sums;
  }
  const int64_t accumulators = accumulator_copies(pieces) * pieces.slots;
  std::vector<double> scale_grad(accumulators, 0.0);
  std::vector<double> zero_point_grad(accumulators, 0.0);
  reduce_rows(pieces, [&](int64_t i, int64_t n, int64_t slot, int64_t accumulator) {
    kernels.learnable_backward_each(io.grad_at(i), io.x_at(i), io.grad_x_at(i), n, io.type, params.arrays(slot), range,
                                    &scale_grad[accumulator], &zero_point_grad[accumulator]);
  });
  for (int64_t i = 0; i < accumulators; ++i) {
    QParamGrads& sum = sums[pieces.param_of_slot(i % pieces.slots)];
    sum.scale += scale_grad[i];
    sum.zero_point += zero_point_grad[i];
  }
  return sums;
}

Grads learnable_cpu(const at::Tensor& grad, const at::Tensor& x, const at::Tensor& scale, const at::Tensor& zero_point,
                    std::optional<int64_t> axis, std::optional<int64_t> group_size, int64_t quant_min,
                    int64_t quant_max, double grad_factor) {
  const Granularity granularity{axis, group_size};
  check(kLearnableOp, grad, x, scale, zero_point, granularity, quant_min, quant_max);
  const auto range = to_range(quant_min, quant_max);
  const Operands io(grad, x);
  const CpuQParams params(kLearnableOp, io.x, scale, zero_point, granularity, range);
  const std::vector<QParamGrads> sums = learnable_sums(io, params, range);

  const auto count = static_cast<int64_t>(sums.size());
  const auto fp32 = at::TensorOptions().dtype(at::kFloat);
  const at::Tensor scale_grad = at::empty({count}, fp32);
  const at::Tensor zero_point_grad = at::empty({count}, fp32);
  auto* s = scale_grad.mutable_data_ptr<float>();
  auto* z = zero_point_grad.mutable_data_ptr<float>();
  for (int64_t i = 0; i < count; ++i) {
    s[i] = static_cast<float>(sums[i].scale * grad_factor);
    z[i] = static_cast<float>(sums[i].zero_point * grad_factor);
  }
  return {io.grad_x, params_from_memory_order(scale_grad, io.x, granularity).view(scale.sizes()),
          params_from_memory_order(zero_point_grad, io.x, granularity).view(zero_point.sizes())};
}

at::Tensor ste_autograd(const at::Tensor& grad, const at::Tensor& x, const at::Tensor& scale,
                        const at::Tensor& zero_point, std::optional<int64_t> axis, std::optional<int64_t> group_size,
                        int64_t quant_min, int64_t quant_max) {
  const auto run = [&] {
    return NoGradient<fake_quantize_backward>::call(grad, x, scale, zero_point, axis, group_size, quant_min, quant_max);
  };
  if (!needs_node(grad, x, scale, zero_point)) return run();
  return NoDerivative::apply(std::string(kSteOp), at::TensorList{grad, x, scale, zero_point},
                             [&] { return torch::autograd::variable_list{run()}; })[0];
}

Grads learnable_autograd(const at::Tensor& grad, const at::Tensor& x, const at::Tensor& scale,
                         const at::Tensor& zero_point, std::optional<int64_t> axis, std::optional<int64_t> group_size,
                         int64_t quant_min, int64_t quant_max, double grad_factor) {
  const auto run = [&] {
    return NoGradient<fake_quantize_learnable_backward>::call(grad, x, scale, zero_point, axis, group_size, quant_min,
                                                              quant_max, grad_factor);
  };
  if (!needs_node(grad, x, scale, zero_point)) return run();
  const auto results = NoDerivative::apply(std::string(kLearnableOp), at::TensorList{grad, x, scale, zero_point}, [&] {
    auto [grad_x, grad_scale, grad_zero_point] = run();
    return torch::autograd::variable_list{grad_x, grad_scale, grad_zero_point};
  });
  return {results[0], results[1], results[2]};
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(torchquant, m) {
  m.def(
      "fake_quantize_backward(Tensor grad, Tensor x, Tensor scale, Tensor zero_point, *, int? axis=None, "
      "int? group_size=None, int quant_min, int quant_max) -> Tensor",
      {at::Tag::pt2_compliant_tag});
  m.def(
      "fake_quantize_learnable_backward(Tensor grad, Tensor x, Tensor scale, Tensor zero_point, *, int? axis=None, "
      "int? group_size=None, int quant_min, int quant_max, float grad_factor=1.0) -> (Tensor, Tensor, Tensor)",
      {at::Tag::pt2_compliant_tag});
}
TORCH_LIBRARY_IMPL(torchquant, CPU, m) {
  m.impl(kSteOp, ste_cpu);
  m.impl(kLearnableOp, learnable_cpu);
}
TORCH_LIBRARY_IMPL(torchquant, Meta, m) {
  m.impl(kSteOp, ste_meta);
  m.impl(kLearnableOp, learnable_meta);
}
TORCH_LIBRARY_IMPL(torchquant, Autograd, m) {
  m.impl(kSteOp, ste_autograd);
  m.impl(kLearnableOp, learnable_autograd);
}

}  // namespace ops
}  // namespace torchquant
