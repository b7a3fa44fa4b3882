// Turns a torch::nn model into a TorchScript module, which is what convert() takes. Called by users' C++ programs.
#pragma once

#include <torch/csrc/jit/api/module.h>
#include <torch/nn/module.h>

#include <functional>
#include <vector>

#include "export.h"

namespace torchquant::nn {

// What a model computes: as many tensors as it takes and returns.
using Forward = std::function<std::vector<torch::Tensor>(const std::vector<torch::Tensor>&)>;

// Runs `forward` once on `inputs` in eval mode without gradient and records it as method "forward" of a TorchScript
// module that holds the parameters, buffers and submodules of `model` under their names (tensors are shared, not
// copied). `forward` takes and returns as many tensors as the model does.
//
// Data-dependent control flow is recorded as it went for `inputs`. The training flags of `model` are restored.
// Raises c10::Error if an observer is still on (call freeze_qparams(model) first), and if the trace does not give what
// `forward` gives: on `inputs`, with another batch size and, where the first input may have one, another sequence
// length. Sizes that the model itself does not take are left out; `fixed_shapes` asks for the shapes of `inputs` alone.
TQ_API torch::jit::Module trace(torch::nn::Module& model, const Forward& forward,
                                const std::vector<torch::Tensor>& inputs, bool fixed_shapes = false);

// The common case: one tensor in, one tensor out, through the holder's own forward.
template <typename ModuleHolder>
torch::jit::Module trace(ModuleHolder& model, const torch::Tensor& input, bool fixed_shapes = false) {
  return trace(
      *model.ptr(),
      [&model](const std::vector<torch::Tensor>& inputs) {
        return std::vector<torch::Tensor>{model->forward(inputs.front())};
      },
      {input}, fixed_shapes);
}

}  // namespace torchquant::nn
