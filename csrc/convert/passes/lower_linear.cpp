// dequantize, linear and what follows it -> quantized_linear.
#include "convert/passes.h"
#include "convert/requantize.h"

namespace torchquant::conversion {

void lower_linear(Conversion& conversion) {
  const Shapes shapes(conversion);
  for_each_layer(conversion, {"linear"}, [&](Node* node) {
    if (!quantized(conversion, node->input(0))) return;
    const int64_t depth = weight_shape(conversion, node->input(1))->at(1);
    const StaticLayer layer = read_static_layer(conversion, shapes, node, {}, depth);
    emit_static_layer(conversion, layer, "quantized_linear", "linear", {});
  });
}

}  // namespace torchquant::conversion
