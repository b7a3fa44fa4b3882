// Turns a prepared TorchScript module (a graph of fake-quants) into one of fused integer ops. Called by C++ users, by
// the Python bindings and by the command line.
#pragma once

#include "archive/receipt.h"
#include "export.h"
#include "torch/csrc/jit/api/module.h"

namespace torchquant {

// What to do with a layer whose weight carries a fake-quant and that no integer kernel can run.
enum class Fallback {
  kError,  // one error that lists every such layer with its reason
  kAllow,  // keep it in float; its receipt row says why
};

struct ConvertOptions {
  Fallback on_fallback = Fallback::kError;
  // One op for each connected run of integer layers. Without, one for each layer: slower, for tools that look at
  // layers.
  bool islands = true;
};

struct ConvertResult {
  torch::jit::Module module;
  Receipt receipt;
};

// Converts `forward`. `prepared` is left as it was; the result holds integer weights as buffers and none of the float
// weights that they replace. TORCHQUANT_DUMP_GRAPH=<directory> writes the graph after each pass.
TQ_API ConvertResult convert(const torch::jit::Module& prepared, const ConvertOptions& options = {});

}  // namespace torchquant
