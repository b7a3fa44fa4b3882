// fake_quantize_fp8, linear on a weight with a fake_quantize_fp8 -> quantized_linear_fp8, also inside loops and
// branches.
#include "convert/layers.h"
#include "convert/passes.h"
#include "convert/requantize.h"

namespace torchquant::conversion {
namespace {

bool is_fp8(const Node* node) { return node->kind() == kind::fake_quantize_fp8; }

c10::IValue setting(const Conversion& conversion, const Node* fake_quant, const char* name) {
  const auto value = conversion.resolve(argument(fake_quant, name));
  if (!value) throw CannotLower(std::string("the ") + name + " of its input's fp8 fake-quant is computed at run time");
  return *value;
}

void lower(Conversion& conversion, Node* node) {
  const Float8Weight weight = float8_weight(conversion, node->input(1));
  const at::Tensor bias = stored_bias(conversion, node->input(2));
  const Node* fake_quant = node->input(0)->node();
  if (!is_fp8(fake_quant)) throw CannotLower("its weight is fp8 and its input carries no fp8 fake-quant");
  const c10::IValue scale = setting(conversion, fake_quant, "scale");
  if (!scale.isNone() && scale.toTensor().numel() != 1) {
    throw CannotLower("the fp8 fake-quant of its input has several scales, and the kernel takes one or each row's own");
  }

  const int64_t x_dtype = setting(conversion, fake_quant, "dtype").toInt();
  if (x_dtype == static_cast<int64_t>(at::kFloat8_e5m2) && weight.codes.scalar_type() == at::kFloat8_e5m2) {
    throw CannotLower("no kernel multiplies two float8_e5m2: its input or its weight must be float8_e4m3fn");
  }
  std::vector<Argument> inputs{fake_quant->input(0), conversion.buffer(weight.layer + ".weight_fp8", weight.codes),
                               conversion.buffer(weight.layer + ".weight_scale", weight.scale)};
  if (bias.defined()) inputs.emplace_back(conversion.buffer(weight.layer + ".bias", bias));
  std::vector<Argument> arguments{{"x_dtype", x_dtype}};
  if (!scale.isNone()) {
    arguments.emplace_back("x_scale", conversion.buffer(weight.layer + ".x_scale", scale.toTensor().to(at::kFloat)));
  }
  Value* out = insert_before(node, "torchquant::quantized_linear_fp8", inputs, arguments);
  conversion.set_lowered(out->node(), {.layer = weight.layer, .kind = "linear", .precision = weight.precision()});
  node->output()->replaceAllUsesWith(out);
  node->destroy();
}

}  // namespace

void lower_fp8_linear(Conversion& conversion) {
  for_each_layer(conversion, {"linear", "convolution", "embedding"}, [&](Node* node) {
    if (!is_fp8(weight_fake_quant(conversion, layer_weight(node)))) return;
    if (!is_aten(node, {"linear"})) throw CannotLower("there is no fp8 kernel for " + layer_kind(conversion, node));
    lower(conversion, node);
  });
}

}  // namespace torchquant::conversion
