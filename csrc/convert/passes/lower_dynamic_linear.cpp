// choose_qparams, fake_quantize, linear, [activation] -> quantized_linear_dynamic, also inside loops and branches.
#include "convert/passes.h"
#include "convert/requantize.h"

namespace torchquant::conversion {
namespace {

struct DynamicInput {
  Value* x;             // the float tensor
  Node* fake_quantize;  // its fake-quant
};

// nullopt unless the layer's input is fake-quantized with parameters that choose_qparams takes from the same tensor.
std::optional<DynamicInput> dynamic_input(const Node* layer) {
  Node* fake_quantize = const_cast<Node*>(layer)->input(0)->node();
  if (fake_quantize->kind() != kind::fake_quantize) return std::nullopt;
  Node* chooser = argument(fake_quantize, "scale")->node();
  if (chooser->kind() != kind::choose_qparams) return std::nullopt;
  if (chooser->input(0) != fake_quantize->input(0)) return std::nullopt;
  return DynamicInput{fake_quantize->input(0), fake_quantize};
}

bool is_int(const Conversion& conversion, const Value* value, int64_t expected) {
  const auto resolved = value ? conversion.resolve(value) : std::nullopt;
  return resolved && resolved->isInt() && resolved->toInt() == expected;
}

bool is_last_dimension(const Conversion& conversion, const Value* axis, const Value* x) {
  if (is_int(conversion, axis, -1)) return true;
  const auto rank = Shapes(conversion).rank(x);
  return rank && is_int(conversion, axis, *rank - 1);
}

// A group is a row: its size is the weight's depth, or what the graph asks x for.
bool is_row_size(const Conversion& conversion, const Value* size, const Value* x, int64_t depth) {
  if (is_int(conversion, size, depth)) return true;
  const Node* node = size->node();
  if (is_aten(node, {"Int"}) || node->kind() == c10::prim::NumToTensor) {
    return is_row_size(conversion, node->input(0), x, depth);
  }
  return is_aten(node, {"size"}) && node->inputs().size() == 2 && node->input(0) == x &&
         is_last_dimension(conversion, node->input(1), x);
}

bool is_per_row(const Conversion& conversion, const Node* node, const Value* x, int64_t depth) {
  return is_last_dimension(conversion, argument(node, "axis"), x) &&
         is_row_size(conversion, argument(node, "group_size"), x, depth) &&
         is_int(conversion, argument(node, "quant_min"), -127) && is_int(conversion, argument(node, "quant_max"), 127);
}

void require_symmetric_rows(const Conversion& conversion, const DynamicInput& input, int64_t depth) {
  const Node* chooser = argument(input.fake_quantize, "scale")->node();
  const auto symmetric = conversion.resolve(argument(chooser, "symmetric"));
  if (symmetric && symmetric->toBool() && is_per_row(conversion, chooser, input.x, depth) &&
      is_per_row(conversion, input.fake_quantize, input.x, depth)) {
    return;
  }
  throw CannotLower(
      "the dynamic kernel quantizes each row symmetrically to [-127, 127], and the fake-quant of its input "
      "does something else");
}

void lower(Conversion& conversion, Node* node, const DynamicInput& input) {
  const IntegerWeight weight = integer_weight(conversion, node->input(1));
  const at::Tensor bias = stored_bias(conversion, node->input(2));
  require_symmetric_per_channel(weight);
  require_int32_sum(weight, weight.codes.size(1));
  require_symmetric_rows(conversion, input, weight.codes.size(1));
  const Epilogue epilogue = match_epilogue(conversion, node, {.quantize = false});

  std::vector<Argument> inputs{input.x, weight_buffer(conversion, weight),
                               conversion.buffer(weight.layer + ".weight_scale", weight.scale)};
  if (bias.defined()) inputs.emplace_back(conversion.buffer(weight.layer + ".bias", bias));
  std::vector<Argument> arguments = activation_arguments(epilogue);
  arguments.insert(arguments.end(), {{"weight_bits", weight.bits}, {"weight_quant_min", weight.quant_min}});
  Value* out = insert_before(epilogue.last(), "torchquant::quantized_linear_dynamic", inputs, arguments);
  conversion.set_lowered(
      out->node(), {.layer = weight.layer, .kind = "linear", .precision = weight.precision(), .fused = epilogue.fused});
  replace_nodes(epilogue, out);
}

}  // namespace

void lower_dynamic_linear(Conversion& conversion) {
  for_each_layer(conversion, {"linear"}, [&](Node* node) {
    if (const auto input = dynamic_input(node)) lower(conversion, node, *input);
  });
}

}  // namespace torchquant::conversion
