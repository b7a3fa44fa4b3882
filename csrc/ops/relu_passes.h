// A ReLU right before a fake-quantize, in training: one bit per element says where the gradient passes both, so that
// one pass replaces two in backward, and what the ReLU returned is freed in forward. Called by ops/straight_through.h
// and the CPU kernels of the ops that observe and fake-quantize.
#pragma once

#include <ATen/core/Tensor.h>
#include <torch/csrc/autograd/function.h>

#include <memory>

#include "export.h"
#include "numerics/affine.h"

namespace torchquant::ops {

// The autograd node of the ReLU that returned x, where a node behind it may step over it: x is a plain dense CPU
// tensor, and nothing watches the gradient on the way or what is saved (torch.utils.checkpoint). Null otherwise.
TQ_API std::shared_ptr<torch::autograd::Node> relu_before(const at::Tensor& x);

// While one lives, the kernel that runs in this thread is asked for the bits. An op returns its output alone, so this
// goes past it; on devices whose kernels note nothing, `passes` stays undefined.
class TQ_API PassesWanted {
 public:
  explicit PassesWanted(bool wanted);
  ~PassesWanted();
  PassesWanted(const PassesWanted&) = delete;
  PassesWanted& operator=(const PassesWanted&) = delete;

  at::Tensor passes;  // int16, bit i % 16 of word i / 16 for element i in memory order

 private:
  PassesWanted* const outer_;
};

// Where the kernel writes the bits of a dense tensor: null where nobody asked for them.
TQ_API uint16_t* wanted_passes(const at::Tensor& dense);

// Gradient of the ReLU's input. `strides` are those of what it returned.
TQ_API at::Tensor relu_backward(const at::Tensor& grad, const at::Tensor& passes, at::IntArrayRef strides);

}  // namespace torchquant::ops
