// quantize after an op that moves, pads, concatenates or max-pools values -> the op after quantize, so that the op runs
// on codes and the layer before it can take the quantize in. Exact: quantize is monotonic and acts on each value alone.
#include <algorithm>

#include "convert/graph.h"
#include "convert/on_codes.h"
#include "convert/passes.h"
#include "convert/written.h"

namespace torchquant::conversion {
namespace {

bool touches_written(const Written& written, const Node* producer) {
  if (written.count(producer->output())) return true;
  const Node* reader = is_concat(producer) ? producer->input(0)->node() : producer;
  const auto operands = reader->inputs();
  return std::any_of(operands.begin(), operands.end(), [&](const Value* operand) { return written.count(operand); });
}

std::vector<Node*> hoist_over_concat(Conversion& conversion, Node* quantize, Node* concat, const QuantParams& params) {
  std::vector<Value*> codes;
  std::vector<Node*> hoisted;
  for (Value* operand : concat->input(0)->node()->inputs()) {
    codes.push_back(insert_quantize(concat, operand, quantize->input(1), quantize->input(2), params));
    hoisted.push_back(codes.back()->node());
  }
  quantize->output()->replaceAllUsesWith(insert_concat(conversion, concat, codes));
  return hoisted;
}

std::vector<Node*> hoist_over_mover(Conversion& conversion, Node* quantize, Node* mover, const QuantParams& params) {
  Value* codes = insert_quantize(mover, mover->input(0), quantize->input(1), quantize->input(2), params);
  Node* moved = insert_on_codes(conversion, mover, codes, params);
  if (!moved) {
    codes->node()->destroy();
    return {};
  }
  quantize->output()->replaceAllUsesWith(moved->output());
  return {codes->node()};
}

// The quantize nodes that stand for `quantize` further up; none if it stays where it is.
std::vector<Node*> hoist(Conversion& conversion, const Written& written, Node* quantize) {
  Value* x = quantize->input(0);
  Node* producer = x->node();
  if (sole_user(x) != quantize || producer->outputs().size() != 1 || conversion.resolve(x)) return {};
  if (!is_concat(producer) && !acts_on_codes(conversion, producer)) return {};
  if (touches_written(written, producer)) return {};
  const auto params = quantize_params(conversion, quantize);
  if (!params) return {};
  define_at_top(quantize->input(1));
  define_at_top(quantize->input(2));
  if (is_concat(producer)) return hoist_over_concat(conversion, quantize, producer, *params);
  return hoist_over_mover(conversion, quantize, producer, *params);
}

}  // namespace

void hoist_quantize(Conversion& conversion) {
  const auto written = written_values(conversion);
  std::vector<Node*> work;
  for (Node* node : all_nodes(conversion.graph())) {
    if (node->kind() == kind::quantize) work.push_back(node);
  }
  while (!work.empty()) {
    Node* quantize = work.back();
    work.pop_back();
    const std::vector<Node*> hoisted = hoist(conversion, written, quantize);
    if (hoisted.empty()) continue;
    work.insert(work.end(), hoisted.begin(), hoisted.end());
    Node* producer = quantize->input(0)->node();
    quantize->destroy();
    producer->destroy();
  }
}

}  // namespace torchquant::conversion
