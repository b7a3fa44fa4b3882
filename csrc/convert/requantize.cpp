// From the results of integer ops to output codes; see requantize.h.
#include "convert/requantize.h"

#include "ATen/TensorOperators.h"
#include "ATen/core/grad_mode.h"
#include "ATen/ops/zeros_like.h"

namespace torchquant::conversion {

at::Tensor output_multiplier(const StaticLayer& layer) {
  at::Tensor multiplier = layer.weight.scale * layer.x.params.scale;
  if (layer.epilogue.batch_norm) multiplier = multiplier * layer.epilogue.batch_norm->factor;
  return multiplier / layer.epilogue.output.scale;
}

at::Tensor output_bias(const StaticLayer& layer) {
  at::Tensor bias = layer.bias.defined() ? layer.bias : at::zeros_like(layer.weight.scale);
  if (const auto& norm = layer.epilogue.batch_norm) bias = (bias - norm->mean) * norm->factor + norm->beta;
  return bias / layer.epilogue.output.scale;
}

at::Tensor stored_bias(const Conversion& conversion, const Value* bias) {
  const auto resolved = conversion.resolve(bias);
  if (!resolved) throw CannotLower("its bias is computed at run time");
  return resolved->isNone() ? at::Tensor() : resolved->toTensor().detach().to(at::kFloat);
}

namespace {

// Batch norm scales dimension 1, which holds a linear layer's channels where its output is a matrix.
bool has_channels_in_dimension_1(const Shapes& shapes, const Node* node) {
  return !is_aten(node, {"linear"}) || shapes.rank(node->output()) == 2;
}

}  // namespace

StaticLayer read_static_layer(const Conversion& conversion, const Shapes& shapes, Node* node,
                              const WeightLayout& layout, int64_t depth) {
  const at::NoGradGuard no_grad;
  StaticLayer layer{*quantized(conversion, node->input(0)),
                    integer_weight(conversion, node->input(1), layout),
                    stored_bias(conversion, node->input(2)),
                    {}};
  require_symmetric_per_channel(layer.weight);
  require_int32_sum(layer.weight, depth);
  EpilogueParts parts{.shapes = &shapes};
  if (has_channels_in_dimension_1(shapes, node)) parts.batch_norm_channels = layer.weight.scale.size(0);
  layer.epilogue = match_epilogue(conversion, node, parts);
  return layer;
}

void emit_static_layer(Conversion& conversion, const StaticLayer& layer, const std::string& op, const std::string& kind,
                       std::vector<Argument> own_arguments) {
  const at::NoGradGuard no_grad;
  const IntegerWeight& weight = layer.weight;
  const Epilogue& epilogue = layer.epilogue;
  std::vector<Argument> inputs{layer.x.codes, weight_buffer(conversion, weight),
                               conversion.buffer(weight.layer + ".multiplier", output_multiplier(layer)),
                               conversion.buffer(weight.layer + ".bias", output_bias(layer))};
  if (epilogue.residual) inputs.emplace_back(epilogue.residual->codes);

  std::vector<Argument> arguments = std::move(own_arguments);
  arguments.insert(arguments.end(), {{"x_zero_point", layer.x.params.zero_point},
                                     {"weight_bits", weight.bits},
                                     {"weight_quant_min", weight.quant_min}});
  const std::vector<Argument> tail = epilogue_arguments(epilogue);
  arguments.insert(arguments.end(), tail.begin(), tail.end());

  Value* out = insert_before(epilogue.last(), "torchquant::" + op, inputs, arguments);
  ReceiptRow row{.layer = weight.layer,
                 .kind = kind,
                 .precision = weight.precision(),
                 .fused = epilogue.fused,
                 .inputs = {layer.x.path},
                 .output = epilogue.output_path};
  if (epilogue.residual) row.inputs.push_back(epilogue.residual->path);
  conversion.set_lowered(out->node(), std::move(row));
  replace_nodes(epilogue, out);
}

void emit_requantized(Conversion& conversion, Node* node, const Quantized& x, const std::string& op,
                      const std::vector<Argument>& own_inputs, std::vector<Argument> own_arguments, ReceiptRow row) {
  Epilogue epilogue;
  epilogue.nodes.push_back(node);
  Node* user = sole_user(node->output());
  const auto output =
      user && user->kind() == kind::quantize ? quantize_params(conversion, user) : std::optional<QuantParams>();
  if (output) {
    epilogue.output = *output;
    epilogue.output_path = quantize_path(user);
    epilogue.nodes.push_back(user);
  }
  const QuantParams& y = epilogue.output;
  std::vector<Argument> inputs{x.codes};
  inputs.insert(inputs.end(), own_inputs.begin(), own_inputs.end());
  std::vector<Argument> arguments = std::move(own_arguments);
  arguments.insert(arguments.end(), {{"x_zero_point", x.params.zero_point},
                                     {"multiplier", static_cast<double>(x.params.scale / y.scale)},
                                     {"output_zero_point", y.zero_point},
                                     {"output_quant_min", y.quant_min},
                                     {"output_quant_max", y.quant_max},
                                     {"output_dtype", y.dtype}});
  Value* out = insert_before(epilogue.last(), "torchquant::" + op, inputs, arguments);
  row.inputs = {x.path};
  row.output = epilogue.output_path;
  conversion.set_lowered(out->node(), std::move(row));
  replace_nodes(epilogue, out);
}

}  // namespace torchquant::conversion
