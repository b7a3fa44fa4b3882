// aten::scaled_dot_product_attention without dropout -> torchquant::attention. Both are float; ours gives every CPU the
// same codes behind it, and is fast where torch's matrix library is not.
#include "convert/graph.h"
#include "convert/passes.h"

namespace torchquant::conversion {
namespace {

bool has_dropout(const Conversion& conversion, const Node* node) {
  const auto probability = conversion.resolve(argument(node, "dropout_p"));
  return !probability || probability->toDouble() != 0.0;
}

// Key and value heads that several query heads share.
bool shares_heads(const Conversion& conversion, const Node* node) {
  const Value* enable = argument(node, "enable_gqa");
  if (enable == nullptr) return false;
  const auto enabled = conversion.resolve(enable);
  return !enabled || enabled->toBool();
}

void lower(Conversion& conversion, Node* node) {
  torch::jit::Graph& graph = conversion.graph();
  const torch::jit::WithInsertPoint guard(node);
  Value* attention = graph.insert(c10::Symbol::fromQualString("torchquant::attention"),
                                  {argument(node, "query"), argument(node, "key"), argument(node, "value"),
                                   argument(node, "attn_mask"), argument(node, "is_causal")},
                                  {torch::jit::NamedValue("scale", argument(node, "scale"))});
  attention->copyMetadata(node->output());
  attention->node()->copyMetadata(node);
  conversion.set_lowered(
      attention->node(),
      {.layer = op_layer(node, "matmul"), .kind = "matmul", .precision = "float", .reason = "float by design"});
  node->output()->replaceAllUsesWith(attention);
  node->destroy();
}

}  // namespace

void lower_attention(Conversion& conversion) {
  for (Node* node : all_nodes(conversion.graph())) {
    if (!is_aten(node, {"scaled_dot_product_attention"})) continue;
    if (!has_dropout(conversion, node) && !shares_heads(conversion, node)) lower(conversion, node);
  }
}

}  // namespace torchquant::conversion
