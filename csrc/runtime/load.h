// Loads a TorchQuant file for running it. Called by C++ programs and by torchquant.load in Python.
#pragma once

#include <string>

#include "archive/receipt.h"
#include "c10/core/Device.h"
#include "export.h"
#include "torch/csrc/jit/api/module.h"

namespace torchquant {

// Verifies the file (format version, SHA-256 of every record) before anything of it is parsed or run, loads it in eval
// mode onto `device` and checks that every stored scale and multiplier is usable. Throws c10::Error with one sentence.
// `receipt`, if given, gets the file's receipt.
TQ_API torch::jit::Module load(const std::string& path, at::Device device = at::kCPU, Receipt* receipt = nullptr);

}  // namespace torchquant
