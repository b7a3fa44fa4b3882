// embedding of a fake-quantized table -> quantized_embedding.
#include "convert/passes.h"
#include "convert/requantize.h"

namespace torchquant::conversion {
namespace {

void lower(Conversion& conversion, Node* node) {
  const IntegerWeight weight = integer_weight(conversion, node->input(0));
  std::vector<Argument> arguments{{"weight_bits", weight.bits},
                                  {"weight_quant_min", weight.quant_min},
                                  {"embedding_dim", weight.codes.size(1)},
                                  {"output_dtype", at::kFloat}};
  if (weight.zero_point.defined()) {
    arguments.emplace_back("weight_zero_point",
                           conversion.buffer(weight.layer + ".weight_zero_point", weight.zero_point));
  }
  if (weight.group_size) arguments.emplace_back("group_size", *weight.group_size);
  Value* out = insert_before(node, "torchquant::quantized_embedding",
                             {node->input(1), weight_buffer(conversion, weight),
                              conversion.buffer(weight.layer + ".weight_scale", weight.scale)},
                             arguments);
  conversion.set_lowered(out->node(), {.layer = weight.layer, .kind = "embedding", .precision = weight.precision()});
  node->output()->replaceAllUsesWith(out);
  node->destroy();
}

}  // namespace

void lower_embedding(Conversion& conversion) {
  for_each_layer(conversion, {"embedding"}, [&](Node* node) { lower(conversion, node); });
}

}  // namespace torchquant::conversion
