// A batch norm that reads codes and stands behind no layer, [add], [activation], [quantize] -> quantized_conv: per
// channel, it is a 1x1 convolution whose weights are all 1.
#include "ATen/ops/ones.h"
#include "convert/passes.h"
#include "convert/requantize.h"

namespace torchquant::conversion {
namespace {

StaticLayer as_depthwise(const Conversion& conversion, const Shapes& shapes, Node* node, const Quantized& x,
                         const BatchNorm& norm, const std::vector<int64_t>& kernel) {
  const int64_t channels = norm.mean.numel();
  std::vector<int64_t> shape{channels, 1};
  shape.insert(shape.end(), kernel.begin(), kernel.end());
  IntegerWeight weight;
  weight.layer = op_layer(node, "batch_norm");
  weight.codes = at::ones(shape, at::kChar);
  weight.scale = at::ones({channels});
  StaticLayer layer{x, std::move(weight), {}, match_epilogue(conversion, node, {.shapes = &shapes})};
  layer.epilogue.batch_norm = norm;
  return layer;
}

void lower(Conversion& conversion, const Shapes& shapes, Node* node) {
  const auto x = quantized(conversion, node->input(0));
  const auto norm = batch_norm_of(conversion, node);
  const size_t rank = shapes.rank(node->input(0)).value_or(0);
  if (!x || !norm || (rank != 3 && rank != 4)) return;
  const std::vector<int64_t> ones(rank - 2, 1);
  const std::vector<int64_t> zeros(rank - 2, 0);
  emit_static_layer(conversion, as_depthwise(conversion, shapes, node, *x, *norm, ones), "quantized_conv", "batch_norm",
                    {{"kernel_size", ones},
                     {"stride", ones},
                     {"padding", zeros},
                     {"dilation", ones},
                     {"groups", norm->mean.numel()},
                     {"transposed", false},
                     {"output_padding", zeros}});
}

}  // namespace

void lower_batch_norm(Conversion& conversion) {
  const Shapes shapes(conversion);
  std::vector<Node*> norms;
  for (Node* node : all_nodes(conversion.graph())) {
    if (is_aten(node, {"batch_norm"})) norms.push_back(node);
  }
  for (Node* norm : norms) lower(conversion, shapes, norm);
}

}  // namespace torchquant::conversion
