// dequantize before an op that moves, pads, concatenates or max-pools values -> the op before dequantize, on codes.
#include <algorithm>

#include "convert/graph.h"
#include "convert/layers.h"
#include "convert/on_codes.h"
#include "convert/passes.h"
#include "convert/weight.h"
#include "convert/written.h"

namespace torchquant::conversion {
namespace {

namespace prim = c10::prim;

void dequantize_instead(Node* node, Value* floats, Value* codes, const Quantized& source) {
  floats->replaceAllUsesWith(insert_dequantize(node, codes, source.scale, source.zero_point));
}

// chunk, split and unbind give a list; each of its elements becomes codes.
void sink_into_list(Conversion& conversion, Node* node, const Quantized& source) {
  Node* unpack = sole_user(node->output());
  if (!unpack || unpack->kind() != prim::ListUnpack) return;
  Node* moved = insert_on_codes(conversion, node, source.codes, source.params);
  if (!moved) return;
  moved->output()->setType(c10::ListType::ofTensors());
  Node* pieces = conversion.graph().createListUnpack(moved->output(), unpack->outputs().size())->insertBefore(unpack);
  for (size_t i = 0; i < unpack->outputs().size(); ++i) {
    dequantize_instead(unpack, unpack->outputs()[i], pieces->outputs()[i], source);
  }
}

void sink_into_concat(Conversion& conversion, Node* node) {
  std::vector<Quantized> operands;
  std::vector<Value*> codes;
  for (const Value* operand : node->input(0)->node()->inputs()) {
    const auto source = quantized(conversion, operand);
    if (!source || (!operands.empty() && !source->params.same_codes(operands[0].params))) return;
    operands.push_back(*source);
    codes.push_back(source->codes);
  }
  if (!operands.empty()) dequantize_instead(node, node->output(), insert_concat(conversion, node, codes), operands[0]);
}

bool feeds_a_layer(const Conversion& conversion, const Value* value) {
  const auto is_layer = [&](const torch::jit::Use& use) {
    Value* weight = use.offset == 0 ? layer_weight(use.user) : nullptr;
    return weight && weight_fake_quant(conversion, weight);
  };
  return std::any_of(value->uses().begin(), value->uses().end(), is_layer);
}

// ATen pads no integers by reflection or replication. The floats are padded, and quantizing them again gives back their
// codes, so that the layer behind still runs on integers.
void quantize_again(Conversion& conversion, Node* pad, const Quantized& source) {
  if (!feeds_a_layer(conversion, pad->output())) return;
  const std::vector<torch::jit::Use> uses = pad->output()->uses();
  Node* next = pad->next();
  Value* codes = insert_quantize(next, pad->output(), source.scale, source.zero_point, source.params);
  Value* floats = insert_dequantize(next, codes, source.scale, source.zero_point);
  for (const auto& use : uses) use.user->replaceInput(use.offset, floats);
}

void sink(Conversion& conversion, const Written& written, Node* node) {
  if (node->inputs().empty()) return;
  if (is_concat(node)) return sink_into_concat(conversion, node);
  const auto source = quantized(conversion, node->input(0));
  if (!source) return;
  if (is_aten(node, {"size", "dim", "numel"}) || node->kind() == prim::device) {
    node->replaceInput(0, source->codes);
    return;
  }
  if (node->outputs().size() != 1 || written.count(node->output()) || !acts_on_codes(conversion, node)) return;
  if (node->output()->type()->kind() == c10::TypeKind::ListType) return sink_into_list(conversion, node, *source);
  if (Node* moved = insert_on_codes(conversion, node, source->codes, source->params)) {
    dequantize_instead(node, node->output(), moved->output(), *source);
  } else if (pads_with_its_values(conversion, node)) {
    quantize_again(conversion, node, *source);
  }
}

}  // namespace

// In program order, so that what a node reads has sunk before. The old nodes are dead now, and removed after the pass.
void sink_dequantize(Conversion& conversion) {
  const auto written = written_values(conversion);
  for (Node* node : all_nodes(conversion.graph())) sink(conversion, written, node);
}

}  // namespace torchquant::conversion
