// Dropout in eval mode -> its input.
#include "convert/graph.h"
#include "convert/passes.h"

namespace torchquant::conversion {

void remove_identities(Conversion& conversion) {
  for (Node* node : all_nodes(conversion.graph())) {
    if (!is_aten(node, {"dropout", "dropout_", "feature_dropout", "feature_dropout_", "alpha_dropout", "alpha_dropout_",
                        "feature_alpha_dropout", "feature_alpha_dropout_"})) {
      continue;
    }
    const auto training = conversion.resolve(argument(node, "train"));
    if (!training || training->toBool()) continue;
    node->output()->replaceAllUsesWith(node->input(0));
    node->destroy();
  }
}

}  // namespace torchquant::conversion
