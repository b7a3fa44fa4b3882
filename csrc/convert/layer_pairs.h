// Each layer of a prepared module twice, as floats and as the integer op that ships, each by itself and with the inputs
// that it meets in the model. Called by tq.sensitivity_scan in Python, which measures both with runtime/measure.h.
#pragma once

#include <string>
#include <vector>

#include "ATen/core/ivalue.h"
#include "export.h"
#include "torch/csrc/jit/api/module.h"

namespace torchquant {

struct LayerPair {
  std::string layer, kind, precision, kernel;  // as in the receipt; a layer that runs twice has two pairs
  torch::jit::Module float_layer;  // all that the integer op computes: batch norm, residual and activation with it
  torch::jit::Module quantized_layer;
  std::vector<c10::IValue> float_inputs, quantized_inputs;
};

// The layers that conversion lowers, in program order, without those inside loops and branches. `inputs` are the
// arguments of one call. `prepared` is left as it was.
TQ_API std::vector<LayerPair> layer_pairs(const torch::jit::Module& prepared, const std::vector<c10::IValue>& inputs);

// The float model: the prepared one frozen and without its fake-quants.
TQ_API torch::jit::Module float_module(const torch::jit::Module& prepared);

}  // namespace torchquant
