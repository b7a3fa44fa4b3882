// mean over every spatial dimension of a fake-quantized tensor -> adaptive average pool to one element.
#include <algorithm>

#include "convert/graph.h"
#include "convert/passes.h"
#include "convert/shapes.h"

namespace torchquant::conversion {
namespace {

bool is_fake_quantized(const Conversion& conversion, const Value* value) {
  const Node* node = value->node();
  if (node->kind() == kind::fake_quantize) return true;
  const bool passes = moves_data(conversion, node) || is_aten(node, {"max_pool1d", "max_pool2d"});
  return passes && is_fake_quantized(conversion, node->input(0));
}

// The dimensions after batch and channels, all of them: (N, C, L) or (N, C, H, W).
bool averages_space(const Conversion& conversion, const Node* node, int64_t rank) {
  const auto resolved = conversion.resolve(argument(node, "dim"));
  if (!resolved || !resolved->isIntList() || (rank != 3 && rank != 4)) return false;
  std::vector<int64_t> dims = resolved->toIntVector();
  for (int64_t& dim : dims) dim += dim < 0 ? rank : 0;
  std::sort(dims.begin(), dims.end());
  return dims == (rank == 3 ? std::vector<int64_t>{2} : std::vector<int64_t>{2, 3});
}

}  // namespace

void normalize_mean(Conversion& conversion) {
  for (Node* node : all_nodes(conversion.graph())) {
    if (!is_aten(node, {"mean"}) || !argument(node, "keepdim") || !is_fake_quantized(conversion, node->input(0)))
      continue;
    const auto rank = Shapes(conversion).rank(node->input(0));
    const auto keep = conversion.resolve(argument(node, "keepdim"));
    const auto dtype = conversion.resolve(argument(node, "dtype"));
    if (!rank || !keep || !dtype || !dtype->isNone() || !averages_space(conversion, node, *rank)) continue;
    const std::string pool = "aten::adaptive_avg_pool" + std::to_string(*rank - 2) + "d";
    Value* mean = insert_before(node, pool, {node->input(0), std::vector<int64_t>(*rank - 2, 1)});
    if (!keep->toBool()) mean = insert_before(node, "aten::flatten", {mean, 1, -1});
    node->output()->replaceAllUsesWith(mean);
    node->destroy();
  }
}

}  // namespace torchquant::conversion
