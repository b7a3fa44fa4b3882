// Asks TorchScript's alias analysis; see written.h.
#include "convert/written.h"

#include "convert/graph.h"
#include "torch/csrc/jit/ir/alias_analysis.h"

namespace torchquant::conversion {

Written written_values(const Conversion& conversion) {
  const torch::jit::AliasDb aliases(conversion.shared_graph());
  Written written;
  const auto add = [&](at::ArrayRef<const Value*> values) {
    for (const Value* value : values) {
      if (aliases.hasWriters(value)) written.insert(value);
    }
  };
  const torch::jit::Graph& graph = conversion.graph();
  add(graph.inputs());
  for (const Node* node : all_nodes(conversion.graph())) add(node->outputs());
  return written;
}

}  // namespace torchquant::conversion
