// Sum of two quantized tensors, [activation], quantize -> quantized_add. Adds that end a convolution or linear layer
// are in its kernel already.
#include "convert/passes.h"
#include "convert/requantize.h"

namespace torchquant::conversion {
namespace {

void lower(Conversion& conversion, Node* node) {
  const auto alpha = conversion.resolve(argument(node, "alpha"));
  const auto a = quantized(conversion, node->input(0));
  const auto b = quantized(conversion, node->input(1));
  if (!a || !b || !alpha || alpha->toScalar().toDouble() != 1.0) return;
  const Epilogue epilogue = match_epilogue(conversion, node, {});
  if (epilogue.output.dtype == at::kFloat) return;
  const float scale = epilogue.output.scale;
  std::vector<Argument> arguments = epilogue_arguments(epilogue);
  arguments.insert(arguments.end(), {{"a_multiplier", static_cast<double>(a->params.scale / scale)},
                                     {"a_zero_point", a->params.zero_point},
                                     {"b_multiplier", static_cast<double>(b->params.scale / scale)},
                                     {"b_zero_point", b->params.zero_point}});
  Value* out = insert_before(epilogue.last(), "torchquant::quantized_add", {a->codes, b->codes}, arguments);
  conversion.set_lowered(out->node(), {.layer = op_layer(node, "add"),
                                       .kind = "add",
                                       .fused = epilogue.fused,
                                       .inputs = {a->path, b->path},
                                       .output = epilogue.output_path});
  replace_nodes(epilogue, out);
}

}  // namespace

void lower_add(Conversion& conversion) {
  std::vector<Node*> sums;
  for (Node* node : all_nodes(conversion.graph())) {
    if (is_aten(node, {"add"}) && argument(node, "alpha")) sums.push_back(node);
  }
  for (Node* sum : sums) lower(conversion, sum);
}

}  // namespace torchquant::conversion
