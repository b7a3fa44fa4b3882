// The layers of a graph: nodes that read a weight. Called by the passes that lower them and by the receipt.
#pragma once

#include <functional>
#include <optional>
#include <string>

#include "convert/conversion.h"
#include "convert/graph.h"

namespace torchquant::conversion {

// "conv2d", "conv_transpose1d", "linear", "embedding", ... as the receipt says it.
std::string layer_kind(const Conversion& conversion, const Node* node);

// The weight that a node reads; nullptr for a node that is no layer.
Value* layer_weight(const Node* node);

// Calls `lower` for each layer of these aten kinds that has a fake-quantized weight and is no fallback yet. A
// CannotLower that it throws becomes the layer's fallback.
void for_each_layer(Conversion& conversion, std::initializer_list<const char*> kinds,
                    const std::function<void(Node*)>& lower);

}  // namespace torchquant::conversion
