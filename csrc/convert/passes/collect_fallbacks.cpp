// What still carries a fake-quant after every lowering pass: each such layer becomes a fallback with its reason.
#include "convert/layers.h"
#include "convert/passes.h"
#include "convert/weight.h"

namespace torchquant::conversion {
namespace {

// The nodes that compute with a fake-quantized weight, behind the ops that move it about.
void find_readers(const Conversion& conversion, const Value* value, std::vector<Node*>& readers) {
  for (const auto& use : value->uses()) {
    if (use.user->kind() != c10::prim::ListUnpack && !moves_data(conversion, use.user)) {
      readers.push_back(use.user);
      continue;
    }
    for (const Value* output : use.user->outputs()) find_readers(conversion, output, readers);
  }
}

std::string reason_for(const Conversion& conversion, const Node* reader) {
  const std::string kind = layer_kind(conversion, reader);
  if (!is_aten(reader, {"convolution"}))
    return "there is no integer kernel for " + std::string(reader->kind().toQualString());
  if (is_fake_quant(reader->input(0)->node())) {
    return "its input is quantized with parameters of the run, and there is no dynamic kernel for " + kind;
  }
  const std::string weight_only = ", and there is no weight-only kernel for " + kind;
  const Node* producer = reader->input(0)->node();
  const bool is_op = producer->kind().is_aten() && !producer->inputs().empty();
  if (is_op && producer->input(0)->node()->kind() == kind::dequantize) {
    return std::string("between it and the fake-quant of its input stands ") + producer->kind().toQualString() +
           weight_only;
  }
  return "its input carries no fake-quant" + weight_only;
}

void collect_weight(Conversion& conversion, Node* fake_quant) {
  const std::string layer = layer_of(conversion, fake_quant->output());
  std::vector<Node*> readers;
  find_readers(conversion, fake_quant->output(), readers);
  for (Node* reader : readers) {
    if (conversion.is_fallback(reader)) continue;
    conversion.set_fallback(reader, layer, layer_kind(conversion, reader), reason_for(conversion, reader));
  }
  // The layer computes with the values that training saw; they need not be computed again at every run.
  const at::Tensor weight = conversion.resolve(fake_quant->output())->toTensor();
  fake_quant->output()->replaceAllUsesWith(conversion.buffer(layer + ".weight_dequantized", weight));
}

void collect_activation(Conversion& conversion, Node* fake_quant) {
  for (const auto& use : fake_quant->output()->uses()) {
    if (conversion.is_fallback(use.user)) return;  // the layer's own row says why
  }
  const std::string path = quantize_path(fake_quant);
  conversion.set_fallback(fake_quant, path, "fake_quantize",
                          "no integer kernel reads it, and it has several parameters or parameters of the run");
}

}  // namespace

void collect_fallbacks(Conversion& conversion) {
  std::vector<Node*> activations;
  for (Node* node : all_nodes(conversion.graph())) {
    if (!is_fake_quant(node)) continue;
    if (conversion.resolve(node->input(0))) {
      collect_weight(conversion, node);
    } else {
      activations.push_back(node);
    }
  }
  for (Node* node : activations) collect_activation(conversion, node);
}

}  // namespace torchquant::conversion
