// Layers without a fake-quant; see float_layers.h.
#include "convert/float_layers.h"

namespace torchquant::conversion {

FloatLayers read_float_layers(const torch::jit::Module& prepared) {
  constexpr const char* kAttribute = "torchquant_float_layers";
  FloatLayers layers;
  if (!prepared.hasattr(kAttribute)) return layers;
  for (const auto& entry : prepared.attr(kAttribute).toGenericDict()) {
    const auto fields = entry.value().toListRef();
    TORCH_CHECK(fields.size() == 3, "convert: the attribute ", kAttribute,
                " must hold three texts for each layer, got ", fields.size());
    layers[entry.key().toStringRef()] = {fields[0].toStringRef(), fields[1].toStringRef(),
                                         fields[2].toStringRef() == "requested"};
  }
  return layers;
}

}  // namespace torchquant::conversion
