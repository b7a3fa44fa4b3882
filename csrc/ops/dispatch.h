// Dispatcher code that the ops of this folder share: typed handles, Autograd and Autocast kernels.
#pragma once

#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/core/grad_mode.h>
#include <c10/core/impl/LocalDispatchKeySet.h>
#include <torch/csrc/autograd/custom_function.h>

#include <string>
#include <tuple>
#include <utility>

#include "ops/cuda_library.h"

namespace torchquant::ops {

// Handle of op `name`, whose C++ signature is that of its entry point. Look it up once, into a static. C++ programs come
// here before they run an op on a GPU.
template <typename Signature>
c10::TypedOperatorHandle<Signature> find_op(const char* name) {
  load_cuda_library();
  return c10::Dispatcher::singleton().findSchemaOrThrow(name, "").typed<Signature>();
}

// Autograd kernel of an op whose results carry no gradient: calls the entry point again, below autograd.
template <auto EntryPoint>
struct NoGradient;

template <typename Result, typename... Args, Result (*EntryPoint)(Args...)>
struct NoGradient<EntryPoint> {
  static Result call(Args... args) {
    at::AutoDispatchBelowADInplaceOrView below_autograd;
    return EntryPoint(std::forward<Args>(args)...);
  }
};

inline bool tracks_gradient(const at::Tensor& tensor) {
  return tensor.requires_grad() || tensor._fw_grad(/*level=*/0).defined();
}

// Whether a call with these tensors must leave a node in the autograd graph.
template <typename... Tensors>
bool needs_node(const Tensors&... tensors) {
  return at::GradMode::is_enabled() && (tracks_gradient(tensors) || ...);
}

// Node of an op that has no derivative: its results carry a graph to `inputs`, and going back through it is an error
// instead of a silent zero. apply(op name, inputs, run), where run() calls the entry point.
class NoDerivative : public torch::autograd::Function<NoDerivative> {
 public:
  template <typename Run>
  static torch::autograd::variable_list forward(torch::autograd::AutogradContext* ctx, const std::string& op,
                                                at::TensorList /*inputs*/, const Run& run) {
    at::AutoDispatchBelowADInplaceOrView below_autograd;
    ctx->saved_data["op"] = op;
    return run();
  }

  static torch::autograd::variable_list backward(torch::autograd::AutogradContext* ctx,
                                                 const torch::autograd::variable_list& /*grads*/) {
    TORCH_CHECK(false, ctx->saved_data["op"].toStringRef(), ": has no derivative, so its result cannot be differentiated");
  }
};

// What an op that mutates its arguments does in its ADInplaceOrView kernel, so that autograd notices if a saved tensor
// changed.
inline void bump_versions(at::TensorList mutated) {
  for (const at::Tensor& tensor : mutated) torch::autograd::impl::bump_version(tensor);
}

// Autograd and ADInplaceOrView kernels of an op that returns nothing and mutates its arguments number Mutated...
template <auto EntryPoint, size_t... Mutated>
struct InPlaceOp;

template <typename... Args, void (*EntryPoint)(Args...), size_t... Mutated>
struct InPlaceOp<EntryPoint, Mutated...> {
  static void autograd(Args... args) {
    at::AutoDispatchBelowAutograd below_autograd;  // not below ADInplaceOrView, which counts the mutations
    EntryPoint(args...);
  }

  static void count_mutations(Args... args) {
    {
      at::AutoDispatchBelowADInplaceOrView below_views;
      EntryPoint(args...);
    }
    const auto arguments = std::forward_as_tuple(args...);
    bump_versions({std::get<Mutated>(arguments)...});
  }
};

// Scale or zero point under autocast: fp32 again where autocast lowered it.
inline at::Tensor to_fp32(const at::Tensor& tensor) {
  return tensor.is_floating_point() ? tensor.to(at::kFloat) : tensor;
}

}  // namespace torchquant::ops
