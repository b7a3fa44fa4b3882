// Makes shape handling independent of memory layout, and folds what scripted modules ask about ranks.
#include "convert/graph.h"
#include "convert/passes.h"
#include "torch/csrc/jit/passes/constant_propagation.h"

namespace torchquant::conversion {
namespace {

// A view of a channels-last tensor fails where one of the contiguous float tensor worked.
void replace_view(Node* node) {
  Value* reshaped = insert_before(node, "aten::reshape", {node->input(0), node->input(1)});
  node->output()->replaceAllUsesWith(reshaped);
  node->destroy();
}

// nn.BatchNorm2d checks `input.dim() != 4` in scripted code: a second reader between a convolution and its batch norm.
void fold_rank(const Conversion& conversion, Node* node) {
  const auto rank = rank_of(conversion, node->input(0));
  if (!rank) return;
  const torch::jit::WithInsertPoint guard(node);
  node->output()->replaceAllUsesWith(node->owningGraph()->insertConstant(*rank));
  node->destroy();
}

}  // namespace

void normalize_shapes(Conversion& conversion) {
  for (Node* node : all_nodes(conversion.graph())) {
    const bool to_sizes = is_aten(node, {"view"}) && node->input(1)->type()->kind() == c10::TypeKind::ListType;
    if (to_sizes) replace_view(node);
  }
  for (Node* node : all_nodes(conversion.graph())) {
    if (is_aten(node, {"dim"})) fold_rank(conversion, node);
  }
  auto graph = conversion.shared_graph();
  torch::jit::ConstantPropagation(graph);
}

}  // namespace torchquant::conversion
