// dequantize, average pool, [quantize] -> quantized_avg_pool or quantized_adaptive_avg_pool.
#include "convert/passes.h"
#include "convert/requantize.h"

namespace torchquant::conversion {
namespace {

std::vector<Argument> window_arguments(const Conversion& conversion, Node* node, size_t dims) {
  const auto get = [&](const char* name) { return per_dimension(conversion, node, name, dims); };
  std::vector<Argument> arguments{{"kernel_size", get("kernel_size")},
                                  {"stride", pool_stride(conversion, node, dims)},
                                  {"padding", get("padding")},
                                  {"ceil_mode", argument(node, "ceil_mode")},
                                  {"count_include_pad", argument(node, "count_include_pad")}};
  if (Value* divisor = argument(node, "divisor_override")) arguments.emplace_back("divisor_override", divisor);
  return arguments;
}

void lower(Conversion& conversion, Node* node, const Quantized& x) {
  const bool adaptive = is_aten(node, {"adaptive_avg_pool1d", "adaptive_avg_pool2d"});
  const size_t dims = is_aten(node, {"avg_pool1d", "adaptive_avg_pool1d"}) ? 1 : 2;
  const std::string op = adaptive ? "quantized_adaptive_avg_pool" : "quantized_avg_pool";
  std::vector<Argument> arguments;
  if (adaptive) {
    arguments.emplace_back("output_size", per_dimension(conversion, node, "output_size", dims));
  } else {
    arguments = window_arguments(conversion, node, dims);
  }
  emit_requantized(conversion, node, x, op, {}, std::move(arguments),
                   {.layer = op_layer(node, "avg_pool"), .kind = "pool"});
}

}  // namespace

void lower_average_pool(Conversion& conversion) {
  std::vector<Node*> pools;
  for (Node* node : all_nodes(conversion.graph())) {
    const bool is_pool = is_aten(node, {"avg_pool1d", "avg_pool2d", "adaptive_avg_pool1d", "adaptive_avg_pool2d"});
    if (is_pool) pools.push_back(node);
  }
  for (Node* pool : pools) {
    if (const auto x = quantized(conversion, pool->input(0))) lower(conversion, pool, *x);
  }
}

}  // namespace torchquant::conversion
