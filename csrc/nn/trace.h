// Turns a torch::nn model into a TorchScript module, which is what convert() takes. Called by users' C++ programs.
#pragma once

#include <torch/csrc/jit/api/module.h>
#include <torch/nn/module.h>

#include <functional>
#include <vector>

#include "export.h"

namespace torchquant::nn {

// Runs `forward` once on `inputs` in eval mode without gradient and records it as method "forward" of a TorchScript
// module that holds the parameters, buffers and submodules of `model` under their names (tensors are shared, not
// copied). `forward` takes and returns as many tensors as the model does.
//
// Data-dependent control flow is recorded as it went for `inputs`. The training flag of `model` is restored.
// Raises c10::Error if an observer is still on: call freeze_qparams(model) first.
TQ_API torch::jit::Module trace(
    torch::nn::Module& model,
    const std::function<std::vector<torch::Tensor>(const std::vector<torch::Tensor>&)>& forward,
    const std::vector<torch::Tensor>& inputs);

// The common case: one tensor in, one tensor out, through the holder's own forward.
template <typename ModuleHolder>
torch::jit::Module trace(ModuleHolder& model, const torch::Tensor& input) {
  return trace(
      *model.ptr(),
      [&model](const std::vector<torch::Tensor>& inputs) {
        return std::vector<torch::Tensor>{model->forward(inputs.front())};
      },
      {input});
}

}  // namespace torchquant::nn
