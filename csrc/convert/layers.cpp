// Layers of a graph; see layers.h.
#include "convert/layers.h"

#include "convert/weight.h"

namespace torchquant::conversion {
namespace {

std::string convolution_kind(const Conversion& conversion, const Node* node) {
  const auto shape = weight_shape(conversion, node->input(1));
  const Value* transposed = argument(node, "transposed");
  const auto is_transposed = transposed ? conversion.resolve(transposed) : std::nullopt;
  const std::string name = is_transposed && is_transposed->toBool() ? "conv_transpose" : "conv";
  return shape ? name + std::to_string(shape->size() - 2) + "d" : name;
}

Value* first_element(Value* list) {
  const Node* node = list->node();
  return node->kind() == c10::prim::ListConstruct && !node->inputs().empty() ? list->node()->input(0) : nullptr;
}

}  // namespace

std::string layer_kind(const Conversion& conversion, const Node* node) {
  if (is_aten(node, {"convolution", "_convolution", "_convolution_mode"})) return convolution_kind(conversion, node);
  return node->kind().toUnqualString();
}

Value* layer_weight(const Node* node) {
  Node* layer = const_cast<Node*>(node);
  if (is_aten(node, {"embedding", "embedding_bag"})) return layer->input(0);
  if (is_aten(node, {"linear", "convolution", "_convolution", "_convolution_mode", "conv1d", "conv2d", "conv3d",
                     "conv_transpose1d", "conv_transpose2d", "conv_transpose3d"})) {
    return layer->input(1);
  }
  if (is_aten(node, {"bilinear"})) return layer->input(2);
  if (is_aten(node, {"lstm_cell", "gru_cell", "rnn_tanh_cell", "rnn_relu_cell"})) return argument(node, "w_ih");
  if (is_aten(node, {"lstm", "gru", "rnn_tanh", "rnn_relu"})) return first_element(argument(node, "params"));
  return nullptr;
}

void for_each_layer(Conversion& conversion, std::initializer_list<const char*> kinds,
                    const std::function<void(Node*)>& lower) {
  std::vector<Node*> layers;  // collected first: lowering destroys the nodes around a layer
  for (Node* node : all_nodes(conversion.graph())) {
    if (is_aten(node, kinds) && weight_fake_quant(conversion, layer_weight(node)) && !conversion.is_fallback(node)) {
      layers.push_back(node);
    }
  }
  for (Node* layer : layers) {
    try {
      lower(layer);
    } catch (const CannotLower& reason) {
      conversion.set_fallback(layer, layer_of(conversion, layer_weight(layer)), layer_kind(conversion, layer),
                              reason.what());
    }
  }
}

}  // namespace torchquant::conversion
