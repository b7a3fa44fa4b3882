// Checks the quantization parameters stored in a loaded module. Called by load(); kernels trust them from then on.
#pragma once

#include "torch/csrc/jit/api/module.h"

namespace torchquant {

// Every stored floating-point argument of a torchquant op must be finite, and every scale positive. Throws c10::Error
// naming the op, the argument and the value.
void check_parameters(const torch::jit::Module& module);

}  // namespace torchquant
