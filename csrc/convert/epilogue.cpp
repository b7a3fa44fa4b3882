// Matches what a fused kernel takes in; see epilogue.h.
#include "convert/epilogue.h"

#include <limits>

#include "ATen/TensorOperators.h"
#include "ATen/core/grad_mode.h"
#include "ATen/ops/ones_like.h"
#include "ATen/ops/zeros_like.h"

namespace torchquant::conversion {
namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();

std::optional<double> bound(const Conversion& conversion, const Node* node, size_t index, double absent) {
  const auto value = conversion.resolve(node->input(index));
  if (!value || value->isTensor()) return std::nullopt;
  return value->isNone() ? absent : value->toScalar().toDouble();
}

std::optional<Activation> clamp(const Conversion& conversion, const Node* node) {
  const auto lo = bound(conversion, node, 1, -kInfinity);
  const auto hi = bound(conversion, node, 2, kInfinity);
  if (!lo || !hi) return std::nullopt;
  return Activation{"hardtanh", {*lo, *hi}};
}

std::optional<Activation> gelu(const Conversion& conversion, const Node* node) {
  const auto approximate = conversion.resolve(node->input(1));
  if (!approximate) return std::nullopt;
  return Activation{approximate->toStringRef() == "tanh" ? "gelu_tanh" : "gelu", {}};
}

// A stored tensor in fp32, undefined for None; nullopt for one that is computed at run time.
std::optional<at::Tensor> fp32(const Conversion& conversion, const Value* value) {
  const auto resolved = conversion.resolve(value);
  if (!resolved) return std::nullopt;
  return resolved->isTensor() ? resolved->toTensor().detach().to(at::kFloat) : at::Tensor();
}

// The other operand of `add`, if it is quantized and of the shape of `value`: a fused residual does not broadcast.
std::optional<Quantized> residual_of(const Conversion& conversion, const Shapes& shapes, const Node* add,
                                     const Value* value) {
  if (!is_aten(add, {"add"}) || add->inputs().size() != 3) return std::nullopt;
  if (!shapes.same(add->input(0), add->input(1))) return std::nullopt;
  const auto alpha = conversion.resolve(add->input(2));
  if (!alpha || alpha->toScalar().toDouble() != 1.0) return std::nullopt;
  const Value* other = add->input(add->input(0) == value ? 1 : 0);
  return quantized(conversion, other);
}

}  // namespace

std::optional<BatchNorm> batch_norm_of(const Conversion& conversion, const Node* node) {
  const auto training = conversion.resolve(argument(node, "training"));
  const auto eps = conversion.resolve(argument(node, "eps"));
  const auto mean = fp32(conversion, argument(node, "running_mean"));
  const auto var = fp32(conversion, argument(node, "running_var"));
  auto gamma = fp32(conversion, argument(node, "weight"));
  auto beta = fp32(conversion, argument(node, "bias"));
  if (!training || training->toBool() || !eps || !mean || !var || !gamma || !beta) return std::nullopt;
  if (!mean->defined() || !var->defined()) return std::nullopt;
  const at::NoGradGuard no_grad;
  if (!gamma->defined()) gamma = at::ones_like(*mean);
  if (!beta->defined()) beta = at::zeros_like(*mean);
  return BatchNorm{*mean, *gamma / (*var + eps->toDouble()).sqrt(), *beta};
}

std::optional<Activation> activation_of(const Conversion& conversion, const Node* node) {
  for (const char* name : {"hardswish", "hardsigmoid", "silu", "sigmoid", "tanh"}) {
    if (is_aten(node, {name})) return Activation{name, {}};
  }
  if (is_aten(node, {"relu"})) return Activation{"relu", {0.0, kInfinity}};
  if (is_aten(node, {"relu6"})) return Activation{"relu6", {0.0, 6.0}};
  if (is_aten(node, {"hardtanh", "clamp"})) return clamp(conversion, node);
  if (is_aten(node, {"gelu"})) return gelu(conversion, node);
  return std::nullopt;
}

Epilogue match_epilogue(const Conversion& conversion, Node* compute, const EpilogueParts& parts) {
  Epilogue result;
  result.nodes.push_back(compute);
  Node* user = sole_user(compute->output());
  const auto take = [&](const std::string& name) {
    result.nodes.push_back(user);
    if (!name.empty()) result.fused.push_back(name);
    user = sole_user(user->output());
  };
  if (user && parts.batch_norm_channels && is_aten(user, {"batch_norm"}) && user->input(0) == result.last()->output()) {
    const auto norm = batch_norm_of(conversion, user);
    if (norm && norm->mean.numel() == *parts.batch_norm_channels) {
      result.batch_norm = norm;
      take("batch_norm");
    }
  }
  if (user && parts.shapes) {
    result.residual = residual_of(conversion, *parts.shapes, user, result.last()->output());
    if (result.residual) take("add");
  }
  if (user) {
    if (const auto activation = activation_of(conversion, user)) {
      result.activation = *activation;
      take(activation->name);
    }
  }
  if (user && parts.quantize && user->kind() == kind::quantize) {
    if (const auto output = quantize_params(conversion, user)) {
      result.output = *output;
      result.output_path = quantize_path(user);
      take("");
    }
  }
  return result;
}

std::vector<Argument> activation_arguments(const Epilogue& epilogue) {
  // In fp32, as the kernels divide: bounds are compared with values in units of the output scale.
  std::vector<double> bounds;
  for (double bound : epilogue.activation.bounds) bounds.push_back(static_cast<float>(bound) / epilogue.output.scale);
  return {{"activation", epilogue.activation.name}, {"activation_args", bounds}};
}

std::vector<Argument> epilogue_arguments(const Epilogue& epilogue) {
  std::vector<Argument> arguments = activation_arguments(epilogue);
  const QuantParams& y = epilogue.output;
  arguments.insert(arguments.end(), {{"output_scale", static_cast<double>(y.scale)},
                                     {"output_zero_point", y.zero_point},
                                     {"output_quant_min", y.quant_min},
                                     {"output_quant_max", y.quant_max},
                                     {"output_dtype", y.dtype}});
  if (epilogue.residual) {
    const QuantParams& residual = epilogue.residual->params;
    arguments.insert(arguments.end(), {{"residual_multiplier", static_cast<double>(residual.scale / y.scale)},
                                       {"residual_zero_point", residual.zero_point}});
  }
  return arguments;
}

void replace_nodes(const Epilogue& epilogue, Value* fused) {
  epilogue.last()->output()->replaceAllUsesWith(fused);
  for (auto node = epilogue.nodes.rbegin(); node != epilogue.nodes.rend(); ++node) (*node)->destroy();
}

}  // namespace torchquant::conversion
