// Which layers suffer from quantization: switches the fake-quants of a prepared TorchScript module off and on and
// compares the outputs. Called by C++ users, by tq.sensitivity_scan in Python and by `torchquant scan`.
#pragma once

#include <cstddef>
#include <functional>
#include <string>
#include <vector>

#include "ATen/core/Tensor.h"
#include "ATen/core/ivalue.h"
#include "export.h"
#include "torch/csrc/jit/api/module.h"

namespace torchquant {

// The fake-quants that belong to a layer: those on its weights, and those on what it reads. A layer that runs several
// times, and all that shares one weight, is one layer.
struct LayerFakeQuants {
  std::string layer;                         // path of the weight's owner, as the receipt names it
  std::string kind;                          // "conv2d", "linear", "embedding", ...
  std::vector<std::string> weights, inputs;  // paths of the fake-quant modules
};

// In program order. Throws c10::Error for a module without fake-quants on weights.
TQ_API std::vector<LayerFakeQuants> layer_fake_quants(const torch::jit::Module& prepared);

// Sums of squares over floating-point tensors: of a reference, and of what differs from it.
struct SignalAndNoise {
  double signal = 0, noise = 0;

  // Tensors, and tuples and lists of them, of the same shapes. Tensors of integers are left out. Throws c10::Error for
  // anything else.
  TQ_API void add(const c10::IValue& reference, const c10::IValue& actual);
  // Signal-to-quantization-noise ratio: 10 log10(signal / noise); infinite where nothing differs, minus infinite where
  // a value is NaN or infinite.
  TQ_API double sqnr_db() const;
};

struct LayerSensitivity {
  std::string layer, kind;
  double alone_sqnr_db;    // of the model whose only quantized layer this is
  double but_one_sqnr_db;  // of the model in which all layers but this are quantized
};

struct SensitivityScan {
  double quantized_sqnr_db = 0;        // of the model with every layer quantized
  std::vector<LayerSensitivity> rows;  // in program order

  // The rows from the layer that hurts most to the one that hurts least: by alone_sqnr_db, equal ones in program order.
  TQ_API std::vector<LayerSensitivity> ranking() const;
};

// Quantizes each layer alone, and all but each, and compares the outputs on `batches` (the arguments of one call each)
// with those of the float model, which is the module with all fake-quants off. `progress`, if given, is called with how
// many of the 2 * layers + 1 models have run, and with their number. `prepared` is left as it was.
TQ_API SensitivityScan scan_sensitivity(const torch::jit::Module& prepared,
                                        const std::vector<std::vector<c10::IValue>>& batches,
                                        const std::function<void(size_t, size_t)>& progress = {});

}  // namespace torchquant
