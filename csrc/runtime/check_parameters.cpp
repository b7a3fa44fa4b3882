#include "runtime/check_parameters.h"

#include <cmath>
#include <optional>
#include <string>

#include "ATen/core/Tensor.h"
#include "c10/util/Exception.h"
#include "numerics/affine.h"
#include "torch/csrc/jit/ir/constants.h"
#include "torch/csrc/jit/ir/ir.h"

namespace torchquant {
namespace {

using torch::jit::IValue;

// The value that the file stores for `value`, if it is a constant or an attribute (of an attribute ...) of `self`.
std::optional<IValue> stored_value(const torch::jit::Value* value, const torch::jit::Module& self) {
  const torch::jit::Node* node = value->node();
  if (node->kind() == c10::prim::GetAttr) {
    const auto owner = stored_value(node->input(0), self);
    if (!owner) return std::nullopt;
    return owner->toObjectRef().getAttr(node->s(c10::attr::name));
  }
  if (node->kind() == c10::prim::Param && value->type() == self.type()) return IValue(self._ivalue());
  return torch::jit::toIValue(value);
}

bool is_scale(const std::string& argument) { return argument == "scale" || argument.ends_with("_scale"); }

// As the kernels read it, in fp32.
void check_number(const std::string& op, const std::string& argument, double value) {
  const auto number = static_cast<float>(value);
  TORCH_CHECK(is_scale(argument) ? numerics::valid_scale(number) : std::isfinite(number), op, ": argument '", argument,
              "' must be ", is_scale(argument) ? "finite and positive, with a finite reciprocal" : "finite",
              "; the file holds ", value);
}

void check_tensor(const std::string& op, const std::string& argument, const at::Tensor& tensor) {
  if (!tensor.defined() || !tensor.is_floating_point()) return;
  const at::Tensor values = tensor.detach().to(at::kCPU, at::kDouble).contiguous();
  for (int64_t i = 0; i < values.numel(); ++i) check_number(op, argument, values.const_data_ptr<double>()[i]);
}

void check_node(const torch::jit::Node* node, const torch::jit::Module& self) {
  const c10::FunctionSchema* schema = node->maybeSchema();
  if (!schema || schema->getNamespace() != "torchquant") return;
  for (size_t i = 0; i < node->inputs().size(); ++i) {
    const auto value = stored_value(node->input(i), self);
    if (!value) continue;
    const std::string& argument = schema->arguments()[i].name();
    if (value->isTensor()) check_tensor(schema->name(), argument, value->toTensor());
    if (value->isDouble()) check_number(schema->name(), argument, value->toDouble());
  }
}

void check_block(const torch::jit::Block* block, const torch::jit::Module& self) {
  for (const torch::jit::Node* node : block->nodes()) {
    check_node(node, self);
    for (const torch::jit::Block* inner : node->blocks()) check_block(inner, self);
  }
}

}  // namespace

void check_parameters(const torch::jit::Module& module) {
  for (const torch::jit::Module& submodule : module.modules()) {
    for (const torch::jit::Method& method : submodule.get_methods()) check_block(method.graph()->block(), submodule);
  }
}

}  // namespace torchquant
