// Product of two quantized activations, [times or divided by a number], [activation], [quantize] -> quantized_matmul.
// Where no quantize follows, it gives floats: to a softmax, for example.
#include <cmath>

#include "convert/passes.h"
#include "convert/requantize.h"
#include "kernels/integer_matmul.h"

namespace torchquant::conversion {
namespace {

// matmul multiplies vectors as well, and tensors of any rank; the op does not.
bool takes(const Shapes& shapes, const Value* value) {
  const auto rank = shapes.rank(value).value_or(2);
  return rank >= 2 && rank <= 2 + kernels::MatmulBatch::kMostAxes;
}

std::optional<double> stored_number(const Conversion& conversion, const Value* value) {
  const auto number = conversion.resolve(value);
  if (!number) return std::nullopt;
  if (number->isScalar()) return number->toScalar().toDouble();
  return number->isTensor() && number->toTensor().dim() == 0 ? std::optional(number->toTensor().item<double>())
                                                             : std::nullopt;
}

// The stored number by which `node` multiplies `value`; nullopt for any other node.
std::optional<float> factor_of(const Conversion& conversion, const Node* node, const Value* value) {
  const bool divides = is_aten(node, {"div"});
  const bool multiplies = is_aten(node, {"mul"});
  if ((!divides && !multiplies) || node->inputs().size() != 2 || node->input(0) != value) return std::nullopt;
  const auto number = stored_number(conversion, node->input(1));
  if (!number) return std::nullopt;
  const auto factor = static_cast<float>(divides ? 1.0 / *number : *number);
  return std::isfinite(factor) ? std::optional(factor) : std::nullopt;
}

// A number that scales the product, as attention has one, then what every layer may take in.
struct Product {
  float factor;
  Epilogue epilogue;
};

Product match_product(const Conversion& conversion, Node* node) {
  Node* user = sole_user(node->output());
  const auto factor = user ? factor_of(conversion, user, node->output()) : std::nullopt;
  if (!factor) return {1.0f, match_epilogue(conversion, node, {})};
  Product product{*factor, match_epilogue(conversion, user, {})};
  product.epilogue.nodes.insert(product.epilogue.nodes.begin(), node);
  product.epilogue.fused.insert(product.epilogue.fused.begin(), user->kind().toUnqualString());
  return product;
}

void lower(Conversion& conversion, const Shapes& shapes, Node* node) {
  const auto a = quantized(conversion, node->input(0));
  const auto b = quantized(conversion, node->input(1));
  if (!a || !b || !takes(shapes, node->input(0)) || !takes(shapes, node->input(1))) return;
  const auto [factor, epilogue] = match_product(conversion, node);
  std::vector<Argument> arguments = epilogue_arguments(epilogue);
  const float multiplier = a->params.scale * b->params.scale * factor / epilogue.output.scale;
  arguments.insert(arguments.end(), {{"multiplier", static_cast<double>(multiplier)},
                                     {"a_zero_point", a->params.zero_point},
                                     {"b_zero_point", b->params.zero_point}});
  Value* out = insert_before(epilogue.last(), "torchquant::quantized_matmul", {a->codes, b->codes}, arguments);
  conversion.set_lowered(out->node(), {.layer = op_layer(node, "matmul"),
                                       .kind = "matmul",
                                       .fused = epilogue.fused,
                                       .inputs = {a->path, b->path},
                                       .output = epilogue.output_path});
  replace_nodes(epilogue, out);
}

}  // namespace

void lower_matmul(Conversion& conversion) {
  const Shapes shapes(conversion);
  std::vector<Node*> products;
  for (Node* node : all_nodes(conversion.graph())) {
    if (is_aten(node, {"matmul", "bmm", "mm"})) products.push_back(node);
  }
  for (Node* product : products) lower(conversion, shapes, product);
}

}  // namespace torchquant::conversion
