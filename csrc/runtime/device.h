// Whether a converted module can run on a device, and the way there. Called by load(), by C++ programs and by
// QuantizedModel in Python.
#pragma once

#include <cstdint>
#include <string>

#include "archive/receipt.h"
#include "c10/core/Device.h"
#include "export.h"
#include "torch/csrc/jit/api/module.h"

namespace torchquant {

// Throws c10::Error, in one sentence, unless torch and TorchQuant can use `device`: for a GPU, that both were built
// with CUDA, that the driver works, that the GPU is there and that it is of sm_80 or newer. Other devices pass.
TQ_API void check_device(at::Device device);

// Throws c10::Error if `module` holds an op of TorchQuant that has no kernel for `device`, naming the layers: those of
// `receipt`, or without one the ops; or if the GPU is too old for one. Only CUDA devices are looked at.
TQ_API void check_runs_on(const torch::jit::Module& module, at::Device device, const Receipt* receipt = nullptr);

// The compute capability from which on GPUs run every op of `module`: 80, or 89 where layers multiply 8-bit floats.
// check_runs_on() refuses an older GPU.
TQ_API int needed_capability(const torch::jit::Module& module);

// Moves the module's parameters and buffers to `device` after both checks; on failure, out of memory too, all stay
// where they are. Use it instead of module.to(device).
TQ_API void move_to(torch::jit::Module& module, at::Device device, const Receipt* receipt = nullptr);

// The receipt of a module on `device`: on CUDA, rows name its kernels ("quantized_conv/cuda"). Files keep those of the
// CPU that converted.
TQ_API Receipt receipt_on(Receipt receipt, at::Device device);

// What check_device() found out about a GPU.
struct GpuFacts {
  bool torchquant_has_cuda;  // libtorchquant_cuda.so was built
  bool torch_has_cuda;
  std::string torch_reason;  // why torch cannot start CUDA, in its own words; empty if it can
  int64_t gpus;
  int64_t index;   // of the one that is asked for: the current one where only "cuda" was said
  int capability;  // its: 90 for sm_90
};

// The clause that follows "cannot use cuda:0: "; empty if nothing is in the way.
TQ_API std::string why_unusable(const GpuFacts& facts);

}  // namespace torchquant
