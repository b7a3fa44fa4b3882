// Every form of a convolution with a fake-quantized weight -> aten::convolution, so that one pass lowers them all.
#include <algorithm>

#include "convert/graph.h"
#include "convert/passes.h"
#include "convert/weight.h"

namespace torchquant::conversion {
namespace {

using Ints = std::vector<int64_t>;

struct Settings {
  Ints kernel, stride, padding, dilation, output_padding, end_padding;
  bool transposed = false;
};

std::optional<c10::IValue> setting(const Conversion& conversion, const Node* node, const char* name) {
  const Value* value = argument(node, name);
  return value ? conversion.resolve(value) : std::nullopt;
}

// One value for each spatial dimension; the ops accept a single one for all.
std::optional<Ints> list(const Conversion& conversion, const Node* node, const char* name, size_t dims) {
  const auto value = setting(conversion, node, name);
  if (!value || !value->isIntList()) return std::nullopt;
  const Ints values = value->toIntVector();
  return values.size() == 1 ? Ints(dims, values[0]) : values;
}

// padding="same" divides dilation * (kernel - 1) between both ends; an odd rest goes to the far end.
void split_same_padding(Settings& settings) {
  for (size_t i = 0; i < settings.kernel.size(); ++i) {
    const int64_t total = settings.dilation[i] * (settings.kernel[i] - 1);
    settings.padding.push_back(total / 2);
    settings.end_padding.push_back(total % 2);
  }
}

bool read_padding(const Conversion& conversion, const Node* node, Settings& settings) {
  const auto padding = setting(conversion, node, "padding");
  const size_t dims = settings.kernel.size();
  settings.end_padding.assign(dims, 0);
  if (padding && padding->isString()) {
    settings.end_padding.clear();
    if (padding->toStringRef() == "same") {
      split_same_padding(settings);
    } else {
      settings.padding.assign(dims, 0);
    }
    return true;
  }
  const auto values = list(conversion, node, "padding", dims);
  if (values) settings.padding = *values;
  return values.has_value();
}

// nullopt for settings that are computed at run time.
std::optional<Settings> read(const Conversion& conversion, const Node* node) {
  const std::vector<int64_t> shape = *weight_shape(conversion, node->input(1));
  Settings settings;
  settings.kernel.assign(shape.begin() + 2, shape.end());
  const size_t dims = settings.kernel.size();
  const auto stride = list(conversion, node, "stride", dims);
  const auto dilation = list(conversion, node, "dilation", dims);
  if (!stride || !dilation) return std::nullopt;
  settings.stride = *stride;
  settings.dilation = *dilation;
  if (!read_padding(conversion, node, settings)) return std::nullopt;
  settings.output_padding = list(conversion, node, "output_padding", dims).value_or(Ints(dims, 0));
  const auto transposed = setting(conversion, node, "transposed");
  settings.transposed = transposed ? transposed->toBool() : is_aten(node, {"conv_transpose1d", "conv_transpose2d"});
  return settings;
}

// aten::constant_pad_nd takes the last dimension first, each with both ends.
Value* pad_far_end(Node* node, const Settings& settings) {
  Ints padding;
  for (auto end = settings.end_padding.rbegin(); end != settings.end_padding.rend(); ++end) {
    padding.insert(padding.end(), {0, *end});
  }
  const bool any = std::any_of(padding.begin(), padding.end(), [](int64_t end) { return end != 0; });
  return any ? insert_before(node, "aten::constant_pad_nd", {node->input(0), padding, 0}) : node->input(0);
}

void replace(Node* node, const Settings& settings) {
  Value* x = pad_far_end(node, settings);
  Value* out = insert_before(node, "aten::convolution",
                             {x, node->input(1), node->input(2), settings.stride, settings.padding, settings.dilation,
                              settings.transposed, settings.output_padding, argument(node, "groups")});
  node->output()->replaceAllUsesWith(out);
  node->destroy();
}

}  // namespace

void normalize_convolution(Conversion& conversion) {
  for (Node* node : all_nodes(conversion.graph())) {
    if (!is_aten(node,
                 {"conv1d", "conv2d", "conv_transpose1d", "conv_transpose2d", "_convolution", "_convolution_mode"})) {
      continue;
    }
    if (!weight_fake_quant(conversion, node->input(1))) continue;
    if (const auto settings = read(conversion, node)) replace(node, *settings);
  }
}

}  // namespace torchquant::conversion
