// Implements nn::trace: mirrors a torch::nn tree as a TorchScript module and runs LibTorch's tracer over it.
#include "nn/trace.h"

#include <torch/csrc/jit/frontend/tracer.h>
#include <torch/csrc/jit/ir/ir.h>
#include <torch/types.h>
#include <torch/utils.h>

#include "nn/fake_quantize.h"

namespace torchquant::nn {

namespace {

using torch::jit::Stack;

torch::jit::Module mirror(torch::nn::Module& source, const std::shared_ptr<torch::jit::CompilationUnit>& unit,
                          const std::string& class_name) {
  // Mangled, so that two submodules of one class can hold different attributes.
  torch::jit::Module target(c10::QualifiedName("__torch__." + class_name), unit, /*shouldMangle=*/true);
  target.register_attribute("training", c10::BoolType::get(), source.is_training());
  for (auto& item : source.named_parameters(/*recurse=*/false)) {
    target.register_parameter(item.key(), item.value(), /*is_buffer=*/false);
  }
  for (auto& item : source.named_buffers(/*recurse=*/false)) target.register_buffer(item.key(), item.value());
  for (auto& item : source.named_children()) {
    target.register_module(item.key(), mirror(*item.value(), unit, class_name + "_" + item.key()));
  }
  return target;
}

void check_observers_are_off(torch::nn::Module& model) {
  for (auto& item : model.named_modules("", /*include_self=*/true)) {
    if (auto* fake_quant = item.value()->as<FakeQuantizeImpl>()) {
      TORCH_CHECK(!fake_quant->observer_enabled, "trace: the observer of '", item.key(),
                  "' is still on; call torchquant::nn::freeze_qparams(model) before tracing");
    }
  }
}

// Puts the training flag back even if forward throws.
class EvalGuard {
 public:
  explicit EvalGuard(torch::nn::Module& model) : model_(model), was_training_(model.is_training()) { model_.eval(); }
  ~EvalGuard() { model_.train(was_training_); }
  EvalGuard(const EvalGuard&) = delete;
  EvalGuard& operator=(const EvalGuard&) = delete;

 private:
  torch::nn::Module& model_;
  bool was_training_;
};

Stack to_stack(const std::vector<torch::Tensor>& tensors) { return Stack(tensors.begin(), tensors.end()); }

// A traced function returns one value: the tensor itself, or a tuple of several.
Stack pack_outputs(const std::vector<torch::Tensor>& outputs) {
  TORCH_CHECK(!outputs.empty(), "trace: forward must return at least one tensor");
  if (outputs.size() == 1) return {outputs.front()};
  std::vector<c10::IValue> elements(outputs.begin(), outputs.end());
  return {c10::ivalue::Tuple::create(std::move(elements))};
}

std::vector<torch::Tensor> to_tensors(const Stack& stack) {
  std::vector<torch::Tensor> tensors;
  for (const auto& value : stack) tensors.push_back(value.toTensor());
  return tensors;
}

}  // namespace

torch::jit::Module trace(
    torch::nn::Module& model,
    const std::function<std::vector<torch::Tensor>(const std::vector<torch::Tensor>&)>& forward,
    const std::vector<torch::Tensor>& inputs) {
  check_observers_are_off(model);
  EvalGuard eval(model);
  torch::NoGradGuard no_grad;

  auto unit = std::make_shared<torch::jit::CompilationUnit>();
  torch::jit::Module scripted = mirror(model, unit, "Model");
  const auto traced_function = [&forward](Stack stack) { return pack_outputs(forward(to_tensors(stack))); };
  const auto no_variable_names = [](const torch::autograd::Variable&) { return std::string(); };
  auto state = torch::jit::tracer::trace(to_stack(inputs), traced_function, no_variable_names, /*strict=*/true,
                                         /*force_outplace=*/false, &scripted)
                   .first;
  auto* function =
      unit->create_function(c10::QualifiedName(*scripted.type()->name(), "forward"), std::move(state->graph));
  scripted.type()->addMethod(function);
  return scripted;
}

}  // namespace torchquant::nn
