// aten::layer_norm over the last dimension -> torchquant::layer_norm. Both are float; ours gives every CPU the same
// codes behind it, and can be part of an island.
#include "convert/graph.h"
#include "convert/passes.h"

namespace torchquant::conversion {
namespace {

bool is_over_last_dimension(const Conversion& conversion, const Node* node) {
  const Value* shape = argument(node, "normalized_shape");
  if (shape->node()->kind() == c10::prim::ListConstruct) return shape->node()->inputs().size() == 1;
  const auto sizes = conversion.resolve(shape);
  return sizes && sizes->isIntList() && sizes->toIntVector().size() == 1;
}

void lower(Conversion& conversion, Node* node) {
  Value* norm = insert_before(node, "torchquant::layer_norm",
                              {argument(node, "input"), argument(node, "weight"), argument(node, "bias")},
                              {{"eps", argument(node, "eps")}});
  conversion.set_lowered(
      norm->node(),
      {.layer = op_layer(node, "norm"), .kind = "norm", .precision = "float", .reason = "float by design"});
  node->output()->replaceAllUsesWith(norm);
  node->destroy();
}

}  // namespace

void lower_layer_norm(Conversion& conversion) {
  for (Node* node : all_nodes(conversion.graph())) {
    if (!is_aten(node, {"layer_norm"}) || !is_over_last_dimension(conversion, node)) continue;
    // Without a weight only normalized_shape says how long rows must be, and our op has no such argument.
    if (argument(node, "weight")->type()->kind() != c10::TypeKind::NoneType) lower(conversion, node);
  }
}

}  // namespace torchquant::conversion
