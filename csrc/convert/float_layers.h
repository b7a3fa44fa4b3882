// Layers that the model was prepared with no fake-quant for, and why. Read by convert(), told by the receipt.
#pragma once

#include <map>
#include <string>

#include "torch/csrc/jit/api/module.h"

namespace torchquant::conversion {

struct FloatLayer {
  std::string kind;
  std::string reason;
  bool requested;  // the QConfig asks for integers: a fallback
};
using FloatLayers = std::map<std::string, FloatLayer>;  // by layer

// From the attribute `torchquant_float_layers` that torchquant.trace leaves in a module, a dictionary from the layer to
// [kind, reason, "requested" or "by design"]; empty for a module without it, such as a C++ program's.
FloatLayers read_float_layers(const torch::jit::Module& prepared);

}  // namespace torchquant::conversion
