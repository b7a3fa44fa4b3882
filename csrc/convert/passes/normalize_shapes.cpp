// Makes shape handling independent of memory layout, and folds what scripted modules ask about ranks.
#include "convert/graph.h"
#include "convert/passes.h"
#include "convert/shapes.h"
#include "convert/written.h"
#include "torch/csrc/jit/passes/constant_propagation.h"

namespace torchquant::conversion {
namespace {

// A view of a channels-last tensor fails where one of the contiguous float tensor worked.
void replace_view(Node* node) {
  Value* reshaped = insert_before(node, "aten::reshape", {node->input(0), node->input(1)});
  node->output()->replaceAllUsesWith(reshaped);
  node->destroy();
}

// Where a write must show through a view, the tensor keeps the layout that the float model gave it: of a channels-last
// one the view would be a copy, or fail.
void keep_layout(const Conversion& conversion, const Node* view) {
  Value* viewed = view->input(0);
  while (moves_data(conversion, viewed->node()) || is_aten(viewed->node(), {"view"})) viewed = viewed->node()->input(0);
  if (viewed->node()->kind() == c10::prim::Param) return;
  Value* dense = insert_before(viewed->node()->next(), "aten::contiguous", {viewed});
  viewed->replaceAllUsesAfterNodeWith(dense->node(), dense);
}

void normalize_views(Conversion& conversion) {
  const auto written = written_values(conversion);
  for (Node* node : all_nodes(conversion.graph())) {
    if (!is_aten(node, {"view", "reshape", "flatten"})) continue;
    if (written.count(node->output())) {
      keep_layout(conversion, node);
    } else if (is_aten(node, {"view"}) && node->input(1)->type()->kind() == c10::TypeKind::ListType) {
      replace_view(node);
    }
  }
}

// nn.BatchNorm2d checks `input.dim() != 4` in scripted code: a second reader between a convolution and its batch norm.
void fold_rank(const Shapes& shapes, Node* node) {
  const auto rank = shapes.rank(node->input(0));
  if (!rank) return;
  const torch::jit::WithInsertPoint guard(node);
  node->output()->replaceAllUsesWith(node->owningGraph()->insertConstant(*rank));
  node->destroy();
}

}  // namespace

void normalize_shapes(Conversion& conversion) {
  normalize_views(conversion);
  const Shapes shapes(conversion);
  for (Node* node : all_nodes(conversion.graph())) {
    if (is_aten(node, {"dim"})) fold_rank(shapes, node);
  }
  auto graph = conversion.shared_graph();
  torch::jit::ConstantPropagation(graph);
}

}  // namespace torchquant::conversion
