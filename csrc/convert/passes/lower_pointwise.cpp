// A pointwise function between two quantized tensors -> a table of 256 codes, computed in fp64. The empty function is a
// change of parameters: a table too, or nothing where they are the same.
#include "ATen/ops/full.h"
#include "convert/passes.h"
#include "convert/requantize.h"
#include "ops/lookup_table.h"

namespace torchquant::conversion {
namespace {

bool is_pointwise(const Node* node) {
  return is_aten(node, {"relu",       "relu6", "hardtanh",   "hardswish",   "hardsigmoid", "silu",       "gelu",
                        "sigmoid",    "tanh",  "leaky_relu", "elu",         "celu",        "selu",       "clamp",
                        "softplus",   "mish",  "softsign",   "log_sigmoid", "hardshrink",  "softshrink", "threshold",
                        "abs",        "neg",   "exp",        "sqrt",        "rsqrt",       "square",     "pow",
                        "reciprocal", "erf",   "add",        "sub",         "rsub",        "mul",        "div"});
}

// One function of one quantized tensor: what its codes are, and the values that stand for it.
struct Function {
  std::optional<Quantized> source;
  std::vector<Value*> arguments;
  std::vector<std::string> ops;
};

bool read_function(const Conversion& conversion, Value* value, Function& function);

bool read_operand(const Conversion& conversion, Value* operand, Function& function) {
  if (const auto constant = conversion.resolve(operand)) {
    return !constant->isTensor() || constant->toTensor().numel() == 1;  // others act by position
  }
  return operand->type()->kind() == c10::TypeKind::TensorType && read_function(conversion, operand, function);
}

bool read_function(const Conversion& conversion, Value* value, Function& function) {
  if (const auto source = quantized(conversion, value)) {
    if (function.source && function.source->codes != source->codes) return false;
    function.source = source;
    function.arguments.push_back(value);
    return true;
  }
  Node* node = value->node();
  if (!is_pointwise(node)) return false;
  for (Value* input : node->inputs()) {
    if (!read_operand(conversion, input, function)) return false;
  }
  function.ops.push_back(node->kind().toUnqualString());
  return true;
}

at::Tensor table_of(const Conversion& conversion, const Value* result, const Function& function, const QuantParams& y) {
  const auto f = [&](double x) {
    Known known;
    // One element, not none: a 0-dimensional fp64 tensor would take the type of an fp32 constant.
    for (const Value* argument : function.arguments) known[argument] = at::full({1}, x, at::kDouble);
    return conversion.resolve(result, known)->toTensor().item<double>();
  };
  const QuantParams& x = function.source->params;
  return ops::build_lookup_table(f, {x.dtype, x.scale, x.zero_point},
                                 {y.dtype, y.scale, y.zero_point, y.quant_min, y.quant_max});
}

bool holds_codes_of(const QuantParams& wide, const QuantParams& narrow) {
  return wide.same_codes(narrow) && wide.quant_min <= narrow.quant_min && wide.quant_max >= narrow.quant_max;
}

void replace_by_table(Conversion& conversion, Node* quantize, const Function& function, const QuantParams& y) {
  Node* last = quantize->input(0)->node();
  const bool is_function = !function.ops.empty();
  const std::string path = quantize_path(quantize);
  const std::string layer = is_function ? op_layer(last, function.ops.back()) : path;
  const at::Tensor table = table_of(conversion, quantize->input(0), function, y);
  Value* out = insert_before(
      quantize, "torchquant::quantized_lookup", {function.source->codes, conversion.buffer(layer + ".table", table)},
      {{"table_min", ops::lookup_table_min(function.source->params.dtype)}, {"output_dtype", y.dtype}});
  conversion.set_lowered(out->node(), {.layer = layer,
                                       .kind = is_function ? "activation" : "requantize",
                                       .fused = function.ops,
                                       .inputs = {function.source->path},
                                       .output = path});
  quantize->output()->replaceAllUsesWith(out);
}

void lower(Conversion& conversion, Node* quantize) {
  Function function;
  if (!read_function(conversion, quantize->input(0), function) || !function.source) return;
  const auto y = quantize_params(conversion, quantize);
  if (!y) return;
  if (function.ops.empty() && holds_codes_of(*y, function.source->params)) {
    quantize->output()->replaceAllUsesWith(function.source->codes);
  } else {
    replace_by_table(conversion, quantize, function, *y);
  }
}

}  // namespace

void lower_pointwise(Conversion& conversion) {
  for (Node* node : all_nodes(conversion.graph())) {
    if (node->kind() == kind::quantize) lower(conversion, node);
  }
}

}  // namespace torchquant::conversion
