// What loading costs beyond reading the file: the weights that kernels of this machine packed for themselves. Called by
// C++ programs and by QuantizedModel.packed_weights. It is no part of the saved receipt, because it is true of one
// machine and one process only.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "export.h"
#include "torch/csrc/jit/api/module.h"

namespace torchquant {

struct PackedWeight {
  std::string buffer;  // of the module, by its path: "layer1_0_conv1_weight_int8"
  std::string kernel;  // that reads the packed form: "avx512_vnni"
  int64_t bytes = 0;   // of the packed form
  double milliseconds = 0;
};

// One entry per buffer and packed form. Weights are packed at the first run that needs them, once per process and
// tensor; before that there are no entries.
TQ_API std::vector<PackedWeight> packed_weights(const torch::jit::Module& module);

}  // namespace torchquant
