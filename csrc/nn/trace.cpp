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
using Tensors = std::vector<torch::Tensor>;

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

// Puts the training flag of every module back, even if forward throws: a batch norm may be frozen in a model that
// trains.
class EvalGuard {
 public:
  explicit EvalGuard(torch::nn::Module& model) {
    for (const auto& module : model.modules(/*include_self=*/true))
      was_training_.emplace_back(module, module->is_training());
    model.eval();
  }
  ~EvalGuard() {
    // Each before its children, whose own flags follow.
    for (const auto& [module, training] : was_training_) module->train(training);
  }
  EvalGuard(const EvalGuard&) = delete;
  EvalGuard& operator=(const EvalGuard&) = delete;

 private:
  std::vector<std::pair<std::shared_ptr<torch::nn::Module>, bool>> was_training_;
};

Stack to_stack(const std::vector<torch::Tensor>& tensors) { return Stack(tensors.begin(), tensors.end()); }

// A traced function returns one value: the tensor itself, or a tuple of several.
Stack pack_outputs(const std::vector<torch::Tensor>& outputs) {
  TORCH_CHECK(!outputs.empty(), "trace: forward must return at least one tensor");
  if (outputs.size() == 1) return {outputs.front()};
  std::vector<c10::IValue> elements(outputs.begin(), outputs.end());
  return {c10::ivalue::Tuple::create(std::move(elements))};
}

Tensors to_tensors(const Stack& stack) {
  Tensors tensors;
  for (const auto& value : stack) tensors.push_back(value.toTensor());
  return tensors;
}

Tensors copies(const Tensors& tensors) {
  Tensors result;
  for (const auto& tensor : tensors) result.push_back(tensor.clone());
  return result;
}

bool agree(const Tensors& expected, const c10::IValue& output) {
  const Tensors actual =
      output.isTensor() ? Tensors{output.toTensor()} : to_tensors(output.toTupleRef().elements().vec());
  for (size_t i = 0; i < expected.size(); ++i) {
    if (actual[i].sizes() != expected[i].sizes() || actual[i].scalar_type() != expected[i].scalar_type()) return false;
    if (!torch::allclose(actual[i], expected[i], 1e-5, 1e-6, /*equal_nan=*/true)) return false;
  }
  return true;
}

// Raises unless the trace gives what the model gives.
void check_agreement(torch::jit::Module& traced, const Tensors& expected, const Tensors& inputs,
                     const std::string& blame) {
  const Tensors given = copies(inputs);
  bool same = false;
  try {
    same = agree(expected, traced.forward({given.begin(), given.end()}));
  } catch (const std::exception&) {
    TORCH_CHECK(false, "trace: the trace ", blame, " (running it failed)");
  }
  TORCH_CHECK(same, "trace: the trace ", blame, " (its results differ from the model's)");
}

// Every tensor whose dimension `dim` is as long as the first one's, cut or repeated to `size`.
Tensors resized(const Tensors& inputs, int64_t dim, int64_t size) {
  const int64_t old_size = inputs.front().size(dim);
  Tensors result;
  for (const auto& input : inputs) {
    const bool fits = input.dim() > dim && input.size(dim) == old_size;
    const auto index =
        torch::arange(size, torch::TensorOptions(torch::kLong).device(input.device())).remainder(old_size);
    result.push_back(fits ? input.index_select(dim, index) : input);
  }
  return result;
}

// Dimensions that may be a sequence length: the second of token ids, the inner two of a three-dimensional input.
std::vector<int64_t> length_dimensions(const torch::Tensor& input) {
  if (input.dim() == 3) return {1, 2};
  return input.dim() == 2 && !input.is_floating_point() ? std::vector<int64_t>{1} : std::vector<int64_t>{};
}

void check_resized(torch::jit::Module& traced, const Forward& forward, const Tensors& inputs, int64_t dim,
                   int64_t size) {
  const Tensors other = resized(inputs, dim, size);
  Tensors expected;
  try {
    expected = forward(copies(other));
  } catch (const std::exception&) {
    return;  // the model's own limit, whatever it raises
  }
  check_agreement(traced, expected, other,
                  c10::str("fixes dimension ", dim, " of its input at ", inputs.front().size(dim),
                           ", while the model also runs with ", size,
                           "; compute sizes from the input, or pass fixed_shapes if only these shapes matter"));
}

void check_trace(torch::jit::Module& traced, const Forward& forward, const Tensors& inputs, bool fixed_shapes) {
  check_agreement(traced, forward(copies(inputs)), inputs, "depends on values of its inputs, or on randomness");
  if (fixed_shapes || inputs.empty() || inputs.front().dim() == 0) return;
  const torch::Tensor& first = inputs.front();
  if (first.size(0) > 0) check_resized(traced, forward, inputs, 0, first.size(0) + 1);
  for (const int64_t dim : length_dimensions(first)) {
    // Shorter rather than longer: position embeddings end somewhere.
    if (first.size(dim) > 0) check_resized(traced, forward, inputs, dim, first.size(dim) > 1 ? first.size(dim) - 1 : 2);
  }
}

}  // namespace

torch::jit::Module trace(torch::nn::Module& model, const Forward& forward, const std::vector<torch::Tensor>& inputs,
                         bool fixed_shapes) {
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
  check_trace(scripted, forward, inputs, fixed_shapes);
  return scripted;
}

}  // namespace torchquant::nn
