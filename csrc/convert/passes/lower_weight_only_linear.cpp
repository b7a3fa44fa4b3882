// linear on a float input and a fake-quantized weight, [activation] -> quantized_linear_weight_only.
#include "convert/passes.h"
#include "convert/requantize.h"

namespace torchquant::conversion {
namespace {

void lower(Conversion& conversion, Node* node) {
  const IntegerWeight weight = integer_weight(conversion, node->input(1));
  const at::Tensor bias = stored_bias(conversion, node->input(2));
  const Epilogue epilogue = match_epilogue(conversion, node, {.quantize = false});

  std::vector<Argument> inputs{node->input(0), weight_buffer(conversion, weight),
                               conversion.buffer(weight.layer + ".weight_scale", weight.scale)};
  std::vector<Argument> arguments = activation_arguments(epilogue);
  if (weight.zero_point.defined()) {
    arguments.emplace_back("weight_zero_point",
                           conversion.buffer(weight.layer + ".weight_zero_point", weight.zero_point));
  }
  if (bias.defined()) arguments.emplace_back("bias", conversion.buffer(weight.layer + ".bias", bias));
  if (weight.group_size) arguments.emplace_back("group_size", *weight.group_size);
  arguments.insert(arguments.end(), {{"weight_bits", weight.bits}, {"weight_quant_min", weight.quant_min}});
  Value* out = insert_before(epilogue.last(), "torchquant::quantized_linear_weight_only", inputs, arguments);
  conversion.set_lowered(
      out->node(), {.layer = weight.layer, .kind = "linear", .precision = weight.precision(), .fused = epilogue.fused});
  replace_nodes(epilogue, out);
}

}  // namespace

void lower_weight_only_linear(Conversion& conversion) {
  for_each_layer(conversion, {"linear"}, [&](Node* node) {
    if (node->input(0)->node()->kind() == kind::fake_quantize) {
      throw CannotLower(
          "the fake-quant of its input has several parameters or a range of its own at run time, and the "
          "kernel takes one scale per tensor");
    }
    lower(conversion, node);
  });
}

}  // namespace torchquant::conversion
