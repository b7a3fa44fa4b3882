// dequantize, linear or bilinear resize, [quantize] -> quantized_resize_linear. Nearest resize moves codes: see
// hoist_quantize and sink_dequantize.
#include "convert/passes.h"
#include "convert/requantize.h"

namespace torchquant::conversion {
namespace {

// Tracing gives the form that takes sizes or scale factors, either of which may be computed by the graph.
bool is_linear_resize(const Node* node) {
  return is_aten(node, {"upsample_linear1d", "upsample_bilinear2d"}) && argument(node, "scale_factors") != nullptr;
}

void lower(Conversion& conversion, Node* node, const Quantized& x) {
  emit_requantized(conversion, node, x, "quantized_resize_linear",
                   {argument(node, "output_size"), argument(node, "align_corners"), argument(node, "scale_factors")},
                   {}, {.layer = op_layer(node, "resize"), .kind = "resize"});
}

}  // namespace

void lower_resize(Conversion& conversion) {
  std::vector<Node*> resizes;  // collected first: lowering destroys the quantize behind each
  for (Node* node : all_nodes(conversion.graph())) {
    if (is_linear_resize(node)) resizes.push_back(node);
  }
  for (Node* resize : resizes) {
    if (const auto x = quantized(conversion, resize->input(0))) lower(conversion, resize, *x);
  }
}

}  // namespace torchquant::conversion
