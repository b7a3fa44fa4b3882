// The receipt of a conversion; see summary.h.
#include "convert/summary.h"

#include <algorithm>
#include <map>

#include "convert/epilogue.h"
#include "convert/layers.h"
#include "convert/weight.h"

namespace torchquant::conversion {
namespace {

constexpr const char* kByDesign = "float by design";

// Ops that stay float by design, with the kind that the receipt gives them; "" for ops that it does not mention.
std::string float_kind(const Node* node) {
  if (is_aten(node, {"batch_norm", "layer_norm", "group_norm", "instance_norm", "rms_norm"})) return "norm";
  if (is_aten(node, {"softmax", "log_softmax"})) return "softmax";
  if (is_aten(node, {"matmul", "bmm", "baddbmm", "mm", "addmm", "einsum", "scaled_dot_product_attention"}))
    return "matmul";
  return "";
}

bool reads_codes(const Node* node) {
  const auto inputs = node->inputs();
  return std::any_of(inputs.begin(), inputs.end(),
                     [](const Value* input) { return input->node()->kind() == kind::dequantize; });
}

// What keeps a norm in floats.
std::string norm_reason(const Node* node) {
  const std::string reason = kByDesign;
  return is_aten(node, {"batch_norm"}) && reads_codes(node) ? reason + ": integers have 3 or 4 known dimensions"
                                                            : reason;
}

// What keeps a product of two activations in floats.
std::string product_reason(const Node* node) {
  const std::string reason = kByDesign;
  if (is_aten(node, {"matmul", "bmm", "mm"}) && reads_codes(node)) {
    return reason + ": one of its operands is a vector, not quantized or of more than 8 dimensions";
  }
  if (is_aten(node, {"matmul", "bmm", "mm"})) {
    return reason + ": QConfigMapping.set_object_type(\"matmul\", ...) quantizes products of two activations";
  }
  if (is_aten(node, {"scaled_dot_product_attention"})) return reason;
  return reason + ": of the products of two activations, matmul, bmm and mm have an integer kernel";
}

// Ops that have an integer kernel, for tensors that are quantized on both sides.
std::string mixed_kind(const Conversion& conversion, const Node* node) {
  if (!reads_codes(node)) return "";
  if (is_aten(node, {"add", "mul"})) return node->kind().toUnqualString();
  if (is_aten(node, {"max_pool1d", "max_pool2d"})) return "pool";
  return activation_of(conversion, node) ? "activation" : "";
}

std::vector<ReceiptRow> rows_of(const Conversion& conversion, const Node* node) {
  if (const auto& rows = conversion.rows(node); !rows.empty()) return rows;
  const auto stays_float = [&](const std::string& layer, const std::string& kind, const std::string& reason) {
    const auto known = conversion.float_layers().find(layer);
    const bool prepare_knows = known != conversion.float_layers().end();
    return std::vector{ReceiptRow{.layer = layer,
                                  .kind = kind,
                                  .precision = "float",
                                  .reason = prepare_knows ? known->second.reason : reason,
                                  .fallback = prepare_knows && known->second.requested}};
  };
  if (const Value* weight = layer_weight(node)) {
    return stays_float(layer_of(conversion, weight), layer_kind(conversion, node), "its weight carries no fake-quant");
  }
  if (const std::string kind = float_kind(node); !kind.empty()) {
    return stays_float(op_layer(node, kind), kind,
                       kind == "matmul" ? product_reason(node)
                       : kind == "norm" ? norm_reason(node)
                                        : kByDesign);
  }
  if (const std::string kind = mixed_kind(conversion, node); !kind.empty()) {
    return stays_float(op_layer(node, kind), kind,
                       std::string(kByDesign) + ": not every tensor around it is quantized");
  }
  return {};
}

}  // namespace

Receipt make_receipt(Conversion& conversion) {
  Receipt receipt;
  std::map<std::string, int> uses;
  for (const Node* node : all_nodes(conversion.graph())) {
    for (ReceiptRow& row : rows_of(conversion, node)) {
      const int use = ++uses[row.layer];
      if (use > 1) row.layer.append("#").append(std::to_string(use));
      receipt.rows.push_back(std::move(row));
    }
  }
  for (const auto& [name, layer] : conversion.float_layers()) {  // what no single op of the graph stands for
    if (!layer.requested || uses.count(name)) continue;
    receipt.rows.push_back(
        {.layer = name, .kind = layer.kind, .precision = "float", .reason = layer.reason, .fallback = true});
  }
  return receipt;
}

std::string list_fallbacks(Conversion& conversion) {
  std::string list;
  const auto add = [&list](const std::string& layer, const std::string& kind, const std::string& reason) {
    list += (list.empty() ? "  " : "\n  ") + layer + " (" + kind + "): " + reason;
  };
  for (const Node* node : all_nodes(conversion.graph())) {
    if (!conversion.is_fallback(node)) continue;
    const ReceiptRow& row = conversion.rows(node).front();
    add(row.layer, row.kind, row.reason);
  }
  for (const auto& [name, layer] : conversion.float_layers()) {
    if (layer.requested) add(name, layer.kind, layer.reason);
  }
  return list;
}

}  // namespace torchquant::conversion
