// Products with a fake-quantized matrix -> aten::linear.
#include "convert/graph.h"
#include "convert/passes.h"
#include "convert/weight.h"

namespace torchquant::conversion {
namespace {

bool is_matrix_weight(const Conversion& conversion, const Value* value) {
  return weight_fake_quant(conversion, value) && weight_shape(conversion, value)->size() == 2;
}

bool is_one(const Conversion& conversion, const Value* value) {
  const auto resolved = conversion.resolve(value);
  return resolved && resolved->toScalar().toDouble() == 1.0;
}

// The stored vector that `add` adds to each row of `product`; nullptr for any other add.
Value* added_bias(const Conversion& conversion, const Node* add, const Value* product, int64_t channels) {
  if (!add || !is_aten(add, {"add"}) || add->inputs().size() != 3 || !is_one(conversion, add->input(2))) return nullptr;
  Value* other = const_cast<Node*>(add)->input(add->input(0) == product ? 1 : 0);
  const auto bias = conversion.resolve(other);
  const bool fits = bias && bias->isTensor() && bias->toTensor().dim() == 1 && bias->toTensor().numel() == channels;
  return fits ? other : nullptr;
}

void replace(Node* last, Value* x, Value* matrix, Value* bias) {
  Value* weight = insert_before(last, "aten::t", {matrix});
  std::vector<Argument> inputs{x, weight};
  if (bias) inputs.emplace_back(bias);
  last->output()->replaceAllUsesWith(insert_before(last, "aten::linear", inputs));
}

// The old nodes are dead then, and removed after the pass: `add` is still ahead of the walk.
void normalize_product(const Conversion& conversion, Node* node) {
  Value* matrix = node->input(1);
  const int64_t channels = weight_shape(conversion, matrix)->at(1);
  Node* add = sole_user(node->output());
  Value* bias = added_bias(conversion, add, node->output(), channels);
  replace(bias ? add : node, node->input(0), matrix, bias);
}

}  // namespace

void normalize_linear(Conversion& conversion) {
  for (Node* node : all_nodes(conversion.graph())) {
    if (is_aten(node, {"matmul", "mm"}) && is_matrix_weight(conversion, node->input(1))) {
      normalize_product(conversion, node);
    } else if (is_aten(node, {"addmm"}) && is_matrix_weight(conversion, node->input(2)) &&
               is_one(conversion, argument(node, "beta")) && is_one(conversion, argument(node, "alpha"))) {
      replace(node, node->input(1), node->input(2), node->input(0));
    }
  }
}

}  // namespace torchquant::conversion
