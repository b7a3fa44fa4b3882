// Implements ops/relu_passes.h.
#include "ops/relu_passes.h"

#include <ATen/SavedTensorHooks.h>
#include <ATen/TensorOperators.h>
#include <ATen/TensorSubclassLikeUtils.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_strided.h>
#include <ATen/ops/scalar_tensor.h>
#include <ATen/ops/where.h>
#include <torch/csrc/autograd/function_hook.h>
#include <torch/csrc/autograd/variable.h>

#include "kernels/relu_fake_quantize.h"
#include "ops/dispatch.h"
#include "ops/granularity.h"
#include "ops/recycled_memory.h"

namespace torchquant::ops {
namespace {

using kernels::kPassesPerWord;

thread_local PassesWanted* asking = nullptr;

bool plain_cpu(const at::Tensor& tensor) {
  return tensor.is_cpu() && tensor.layout() == at::kStrided && !at::isTensorSubclassLike(tensor);
}

at::Tensor masked(const at::Tensor& grad, const at::Tensor& passes) {
  at::Tensor grad_x = empty_like_recycled(grad);
  const auto& kernels = kernels::relu_fake_quantize_kernels(kernels::selected_isa());
  const auto type = float_type(grad);
  const auto size = static_cast<int64_t>(grad.element_size());
  const auto* from = static_cast<const std::byte*>(grad.const_data_ptr());
  const auto* words = reinterpret_cast<const uint16_t*>(passes.const_data_ptr<int16_t>());
  auto* to = static_cast<std::byte*>(grad_x.mutable_data_ptr());
  at::parallel_for(0, passes.numel(), kGrainElements / kPassesPerWord, [&](int64_t first, int64_t last) {
    const int64_t begin = first * kPassesPerWord;
    const int64_t n = std::min(last * kPassesPerWord, grad.numel()) - begin;
    kernels.backward(from + begin * size, words + first, to + begin * size, n, type);
  });
  return grad_x;
}

// Of ATen ops, for compiled graphs and batches of gradients.
at::Tensor masked_by_ops(const at::Tensor& grad, const at::Tensor& passes, at::IntArrayRef strides) {
  const at::Tensor place = at::arange(kPassesPerWord, passes.options().dtype(at::kInt));
  const at::Tensor bits = passes.to(at::kInt).unsqueeze(1).__rshift__(place).__and__(1);
  const at::Tensor mask = bits.flatten().to(at::kBool).as_strided(grad.sizes(), strides);
  return at::where(mask, grad, at::scalar_tensor(0, grad.options()));
}

}  // namespace

std::shared_ptr<torch::autograd::Node> relu_before(const at::Tensor& x) {
  if (!plain_cpu(x) || !x.is_non_overlapping_and_dense()) return nullptr;
  if (!at::SavedTensorDefaultHooks::get_tls_state().stack.empty()) return nullptr;
  const auto node = x.grad_fn();
  // The class is torch's own and generated: its name is its interface.
  if (!node || node->name() != "ReluBackward0") return nullptr;
  const bool unwatched = node->pre_hooks().empty() && node->post_hooks().empty() && node->tensor_pre_hooks().empty() &&
                         node->retains_grad_hooks().empty();
  return unwatched ? node : nullptr;
}

PassesWanted::PassesWanted(bool wanted) : outer_(asking) { asking = wanted ? this : nullptr; }
PassesWanted::~PassesWanted() { asking = outer_; }

uint16_t* wanted_passes(const at::Tensor& dense) {
  if (!asking) return nullptr;
  asking->passes = at::empty({at::divup(dense.numel(), kPassesPerWord)}, at::TensorOptions().dtype(at::kShort));
  return reinterpret_cast<uint16_t*>(asking->passes.mutable_data_ptr<int16_t>());
}

at::Tensor relu_backward(const at::Tensor& grad, const at::Tensor& passes, at::IntArrayRef strides) {
  const auto run = [&] {
    if (!plain_cpu(grad) || !plain_cpu(passes)) return masked_by_ops(grad, passes, strides);
    at::NoGradGuard no_grad;
    if (grad.strides() == strides) return masked(grad, passes);
    return masked(at::empty_strided(grad.sizes(), strides, grad.options()).copy_(grad), passes);
  };
  if (!at::GradMode::is_enabled()) return run();
  const at::Tensor differentiated = at::empty({0}, grad.options()).requires_grad_();
  return NoDerivative::apply(std::string("fake_quantize_backward"), at::TensorList{grad, differentiated},
                             [&] { return torch::autograd::variable_list{run()}; })[0];
}

}  // namespace torchquant::ops
