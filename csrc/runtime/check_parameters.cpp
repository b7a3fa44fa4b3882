#include "runtime/check_parameters.h"

#include <cmath>
#include <optional>
#include <string>

#include "ATen/core/Tensor.h"
#include "ATen/core/dispatch/Dispatcher.h"
#include "c10/util/Exception.h"
#include "ops/island/program.h"
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

void check_number(const std::string& op, const std::string& argument, double value) {
  TORCH_CHECK(std::isfinite(value) && (!is_scale(argument) || value > 0), op, ": argument '", argument, "' must be ",
              is_scale(argument) ? "finite and positive" : "finite", "; the file holds ", value);
}

void check_tensor(const std::string& op, const std::string& argument, const at::Tensor& tensor) {
  if (!tensor.defined() || !tensor.is_floating_point()) return;
  const at::Tensor values = tensor.detach().to(at::kCPU, at::kDouble).contiguous();
  for (int64_t i = 0; i < values.numel(); ++i) check_number(op, argument, values.const_data_ptr<double>()[i]);
}

void check_value(const std::string& op, const std::string& argument, const IValue& value) {
  if (value.isTensor()) check_tensor(op, argument, value.toTensor());
  if (value.isDouble()) check_number(op, argument, value.toDouble());
}

// The element `index` of a list in the graph, if the file stores it.
std::optional<IValue> stored_element(const torch::jit::Value* list, int64_t index, const torch::jit::Module& self) {
  const auto elements = list->node()->inputs();
  const bool exists = list->node()->kind() == c10::prim::ListConstruct && index < static_cast<int64_t>(elements.size());
  return exists ? stored_value(elements[index], self) : std::nullopt;
}

void check_step(const island::Step& step, const torch::jit::Value* constants, const torch::jit::Module& self) {
  if (!step.op.starts_with("torchquant::")) return;
  const c10::FunctionSchema& schema = c10::Dispatcher::singleton().findSchemaOrThrow(step.op.c_str(), "").schema();
  TORCH_CHECK(schema.arguments().size() == step.arguments.size(), "the arguments of a step do not fit the schema ",
              schema);
  for (size_t i = 0; i < step.arguments.size(); ++i) {
    const std::string& argument = schema.arguments()[i].name();
    const auto& content = step.arguments[i].content;
    if (const auto* number = std::get_if<double>(&content)) check_number(schema.name(), argument, *number);
    const auto* reference = std::get_if<island::Reference>(&content);
    if (!reference || reference->source != island::Source::kConstant) continue;
    if (const auto value = stored_element(constants, reference->index, self))
      check_value(schema.name(), argument, *value);
  }
}

// The ops that an island stands for.
void check_island(const torch::jit::Node* node, const torch::jit::Module& self) {
  const auto text = stored_value(node->namedInput("program"), self);
  if (!text) return;
  const torch::jit::Value* constants = node->namedInput("constants");
  for (const island::Step& step : island::Program::parse(text->toStringView()).steps) check_step(step, constants, self);
}

void check_node(const torch::jit::Node* node, const torch::jit::Module& self) {
  const c10::FunctionSchema* schema = node->maybeSchema();
  if (!schema || schema->getNamespace() != "torchquant") return;
  if (schema->name() == "torchquant::quantized_island") return check_island(node, self);
  for (size_t i = 0; i < node->inputs().size(); ++i) {
    const auto value = stored_value(node->input(i), self);
    if (!value) continue;
    check_value(schema->name(), schema->arguments()[i].name(), *value);
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
