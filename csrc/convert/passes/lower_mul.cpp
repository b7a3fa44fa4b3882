// Product of two quantized tensors, [activation], quantize -> quantized_mul.
#include "convert/passes.h"
#include "convert/requantize.h"

namespace torchquant::conversion {
namespace {

void lower(Conversion& conversion, Node* node) {
  const auto a = quantized(conversion, node->input(0));
  const auto b = quantized(conversion, node->input(1));
  if (!a || !b) return;
  const Epilogue epilogue = match_epilogue(conversion, node, {});
  if (epilogue.output.dtype == at::kFloat) return;
  std::vector<Argument> arguments = epilogue_arguments(epilogue);
  const float multiplier = a->params.scale * b->params.scale / epilogue.output.scale;
  arguments.insert(arguments.end(), {{"multiplier", static_cast<double>(multiplier)},
                                     {"a_zero_point", a->params.zero_point},
                                     {"b_zero_point", b->params.zero_point}});
  Value* out = insert_before(epilogue.last(), "torchquant::quantized_mul", {a->codes, b->codes}, arguments);
  conversion.set_lowered(out->node(), {.layer = op_layer(node, "mul"),
                                       .kind = "mul",
                                       .fused = epilogue.fused,
                                       .inputs = {a->path, b->path},
                                       .output = epilogue.output_path});
  replace_nodes(epilogue, out);
}

}  // namespace

void lower_mul(Conversion& conversion) {
  std::vector<Node*> products;
  for (Node* node : all_nodes(conversion.graph())) {
    if (is_aten(node, {"mul"})) products.push_back(node);
  }
  for (Node* product : products) lower(conversion, product);
}

}  // namespace torchquant::conversion
