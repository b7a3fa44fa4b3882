// dequantize, aten::convolution and what follows it -> quantized_conv.
#include "c10/util/accumulate.h"
#include "convert/passes.h"
#include "convert/requantize.h"

namespace torchquant::conversion {
namespace {

std::vector<int64_t> ints(const Conversion& conversion, const Node* node, const char* name) {
  return conversion.resolve(argument(node, name))->toIntVector();
}

void lower(Conversion& conversion, const Shapes& shapes, Node* node) {
  const auto groups = conversion.resolve(argument(node, "groups"));
  if (!groups) throw CannotLower("its groups are computed at run time");
  const bool transposed = conversion.resolve(argument(node, "transposed"))->toBool();
  const std::vector<int64_t> shape = *weight_shape(conversion, node->input(1));
  const std::vector<int64_t> kernel(shape.begin() + 2, shape.end());
  if (kernel.empty() || kernel.size() > 2) throw CannotLower("the integer kernel convolves over 1 or 2 dimensions");
  const int64_t channels = transposed ? shape[0] / groups->toInt() : shape[1];
  const StaticLayer layer = read_static_layer(conversion, shapes, node, {transposed, groups->toInt()},
                                              channels * c10::multiply_integers(kernel));
  emit_static_layer(conversion, layer, "quantized_conv", layer_kind(conversion, node),
                    {{"kernel_size", kernel},
                     {"stride", ints(conversion, node, "stride")},
                     {"padding", ints(conversion, node, "padding")},
                     {"dilation", ints(conversion, node, "dilation")},
                     {"groups", groups->toInt()},
                     {"transposed", transposed},
                     {"output_padding", ints(conversion, node, "output_padding")}});
}

}  // namespace

void lower_convolution(Conversion& conversion) {
  const Shapes shapes(conversion);
  for_each_layer(conversion, {"convolution"}, [&](Node* node) {
    if (quantized(conversion, node->input(0))) lower(conversion, shapes, node);
  });
}

}  // namespace torchquant::conversion
