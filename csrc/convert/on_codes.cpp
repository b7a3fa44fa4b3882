// Integer forms of ops that keep quantization parameters; see on_codes.h.
#include "convert/on_codes.h"

#include <algorithm>

#include "numerics/affine.h"

namespace torchquant::conversion {
namespace {

namespace prim = c10::prim;

bool is_resize(const Node* node) {
  return is_aten(node, {"upsample_nearest1d", "upsample_nearest2d", "__interpolate"});
}

bool joins_list(const Node* node) { return is_aten(node, {"cat", "concat", "concatenate", "stack"}); }

Node* insert_max_pool(Conversion& conversion, Node* node, Value* codes, const QuantParams& params) {
  const size_t dims = is_aten(node, {"max_pool1d"}) ? 1 : 2;
  const auto get = [&](const char* name) { return per_dimension(conversion, node, name, dims); };
  Value* pooled = insert_before(node, "torchquant::quantized_max_pool", {codes},
                                {{"kernel_size", get("kernel_size")},
                                 {"stride", pool_stride(conversion, node, dims)},
                                 {"padding", get("padding")},
                                 {"dilation", get("dilation")},
                                 {"ceil_mode", argument(node, "ceil_mode")},
                                 {"pad_value", params.quant_min}});
  conversion.set_lowered(pooled->node(), {.layer = op_layer(node, "max_pool"), .kind = "pool"});
  return pooled->node();
}

// The code of `value`, if one stands for exactly that value, as the zero point always does for 0.
std::optional<int64_t> exact_code(double value, const QuantParams& params) {
  const numerics::QRange range{static_cast<float>(params.quant_min), static_cast<float>(params.quant_max)};
  const auto p = numerics::make_qparams(params.scale, static_cast<float>(params.zero_point), range);
  const float code = numerics::quantize_value(static_cast<float>(value), p, range);
  if (numerics::dequantize_value(code, p) != static_cast<float>(value)) return std::nullopt;
  return static_cast<int64_t>(code);
}

std::string pad_mode(const Conversion& conversion, const Node* node) {
  const Value* mode = argument(node, "mode");
  if (!mode) return "constant";
  const auto resolved = conversion.resolve(mode);
  return resolved ? resolved->toStringRef() : "";
}

Node* insert_pad(Conversion& conversion, Node* node, Value* codes, const QuantParams& params) {
  const std::string mode = pad_mode(conversion, node);
  if (mode == "circular") return copy_with_input(node, codes);
  if (mode != "constant") return nullptr;
  const auto value = conversion.resolve(argument(node, "value"));
  if (!value) return nullptr;
  const auto code = exact_code(value->isNone() ? 0.0 : value->toScalar().toDouble(), params);
  if (!code) return nullptr;
  return insert_before(node, "aten::constant_pad_nd", {codes, argument(node, "pad"), *code})->node();
}

}  // namespace

bool acts_on_codes(const Conversion& conversion, const Node* node) {
  return moves_data(conversion, node) || is_aten(node, {"max_pool1d", "max_pool2d", "constant_pad_nd", "pad"});
}

Node* insert_on_codes(Conversion& conversion, Node* node, Value* codes, const QuantParams& params) {
  if (is_aten(node, {"max_pool1d", "max_pool2d"})) return insert_max_pool(conversion, node, codes, params);
  if (is_aten(node, {"constant_pad_nd", "pad"})) return insert_pad(conversion, node, codes, params);
  if (is_resize(node) && params.dtype != at::kByte) return nullptr;  // ATen resizes no int8
  return copy_with_input(node, codes);
}

bool pads_with_its_values(const Conversion& conversion, const Node* node) {
  if (is_aten(node, {"reflection_pad1d", "reflection_pad2d", "replication_pad1d", "replication_pad2d"})) return true;
  const std::string mode = is_aten(node, {"pad"}) ? pad_mode(conversion, node) : "";
  return mode == "reflect" || mode == "replicate";
}

bool is_concat(const Node* node) {
  if (!joins_list(node)) return false;
  const Value* list = node->input(0);
  // Anything else that holds the list may append to it, as a loop over time does.
  return list->node()->kind() == prim::ListConstruct && !list->node()->inputs().empty() &&
         std::all_of(list->uses().begin(), list->uses().end(), [](const auto& use) { return joins_list(use.user); });
}

Value* insert_concat(Conversion& conversion, Node* node, std::vector<Value*> codes) {
  torch::jit::Graph& graph = conversion.graph();
  Node* list = graph.createList(c10::TensorType::get(), codes)->insertBefore(node);
  Node* joined = copy_with_input(node, list->output());
  conversion.set_lowered(joined, {.layer = op_layer(node, "concat"), .kind = "concat"});
  return joined->output();
}

}  // namespace torchquant::conversion
