// Loads a TorchQuant file for running it. Called by C++ programs and by torchquant.load in Python.
#pragma once

#include <string>

#include "archive/receipt.h"
#include "c10/core/Device.h"
#include "export.h"
#include "torch/csrc/jit/api/module.h"

namespace torchquant {

// Verifies the file (format version, SHA-256 of every record) before anything of it is parsed or run, loads it in eval
// mode, checks that every stored scale and multiplier is usable, and moves it to `device` (runtime/device.h; the same
// file serves CPU and CUDA). Throws c10::Error with one sentence: before the file is opened for a GPU that cannot be
// used, before anything moves for a layer without a CUDA kernel. `receipt`, if given, gets the file's receipt;
// receipt_on(*receipt, device) names the kernels there.
TQ_API torch::jit::Module load(const std::string& path, at::Device device = at::kCPU, Receipt* receipt = nullptr);

}  // namespace torchquant
