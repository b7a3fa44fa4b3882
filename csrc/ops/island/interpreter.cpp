// The op-by-op executor of islands; see interpreter.h.
#include "ops/island/interpreter.h"

#include <ATen/core/List.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/core/jit_type.h>
#include <ATen/ops/clone.h>

#include <map>
#include <mutex>

namespace torchquant::island {
namespace {

using c10::IValue;

template <typename Elements>
const auto& element_at(const Elements& elements, int64_t index, const char* name) {
  TORCH_CHECK(index < static_cast<int64_t>(elements.size()), "quantized_island: program reads number ", index, " of ",
              name, ", which has ", elements.size());
  return elements[index];
}

IValue referred(const Reference& reference, const Operands& operands, const std::vector<IValue>& values) {
  switch (reference.source) {
    case Source::kValue:
      return values.at(reference.index);
    case Source::kInput:
      return element_at(operands.inputs, reference.index, "inputs");
    case Source::kConstant:
      return element_at(operands.constants, reference.index, "constants");
    case Source::kSize:
      return IValue(element_at(operands.sizes, reference.index, "sizes"));
  }
  TORCH_INTERNAL_ASSERT(false);
}

c10::TypePtr without_optional(const c10::TypePtr& type) {
  const auto optional = type->cast<c10::OptionalType>();
  return optional ? optional->getElementType() : type;
}

IValue list_of(const List& elements, const c10::TypePtr& type, const Operands& operands,
               const std::vector<IValue>& values) {
  const auto list_type = type->cast<c10::ListType>();
  TORCH_CHECK(list_type, "quantized_island: program gives a list for an argument of type ", type->repr_str());
  c10::impl::GenericList list(list_type->getElementType());
  for (const Argument& element : elements)
    list.push_back(resolve(element, list_type->getElementType(), operands, values));
  return list;
}

c10::SymInt size_at(const std::vector<IValue>& arguments, size_t index) { return arguments.at(index).toSymInt(); }

c10::SymInt floor_divide(const c10::SymInt& a, const c10::SymInt& b) {
  TORCH_CHECK(b != 0, "quantized_island: program divides a size by 0");
  const c10::SymInt quotient = a / b;
  return quotient * b != a && (a < 0) != (b < 0) ? quotient - 1 : quotient;
}

IValue unpack_check(const IValue& list, int64_t results) {
  TORCH_CHECK(list.toListRef().size() == static_cast<size_t>(results), "quantized_island: program takes ", results,
              " elements from a list of ", list.toListRef().size());
  return list;
}

// The steps that are no ops of the dispatcher.
bool run_builtin(const Step& step, const std::vector<IValue>& arguments, std::vector<IValue>& values) {
  if (step.op == kSizeOf) {
    values.emplace_back(arguments.at(0).toTensor().sym_size(arguments.at(1).toInt()));
  } else if (step.op == kAddSizes) {
    values.emplace_back(size_at(arguments, 0) + size_at(arguments, 1));
  } else if (step.op == kSubtractSizes) {
    values.emplace_back(size_at(arguments, 0) - size_at(arguments, 1));
  } else if (step.op == kMultiplySizes) {
    values.emplace_back(size_at(arguments, 0) * size_at(arguments, 1));
  } else if (step.op == kDivideSizes) {
    values.emplace_back(floor_divide(size_at(arguments, 0), size_at(arguments, 1)));
  } else if (step.op == kUnpack) {
    for (const IValue& element : unpack_check(arguments.at(0), step.results).toListRef()) values.push_back(element);
  } else {
    return false;
  }
  return true;
}

// "aten::slice.Tensor" -> the op.
c10::OperatorHandle find_op(const std::string& op) {
  const size_t dot = op.find('.');
  const std::string name = op.substr(0, dot);
  const std::string overload = dot == std::string::npos ? "" : op.substr(dot + 1);
  const auto found = c10::Dispatcher::singleton().findSchema({name, overload});
  TORCH_CHECK(found, "quantized_island: program uses the op ", op, ", which this torch or torchquant does not have");
  return *found;
}

std::vector<IValue> resolve_all(const Step& step, const c10::FunctionSchema* schema, const Operands& operands,
                                const std::vector<IValue>& values) {
  std::vector<IValue> arguments;
  for (size_t i = 0; i < step.arguments.size(); ++i) {
    const c10::TypePtr type = schema ? schema->arguments().at(i).real_type() : c10::TypePtr(c10::AnyType::get());
    arguments.push_back(resolve(step.arguments[i], type, operands, values));
  }
  return arguments;
}

}  // namespace

IValue resolve(const Argument& argument, const c10::TypePtr& type, const Operands& operands,
               const std::vector<IValue>& values) {
  return std::visit(
      [&](const auto& content) -> IValue {
        using Content = std::decay_t<decltype(content)>;
        if constexpr (std::is_same_v<Content, std::monostate>) {
          return {};
        } else if constexpr (std::is_same_v<Content, Reference>) {
          return referred(content, operands, values);
        } else if constexpr (std::is_same_v<Content, List>) {
          return list_of(content, without_optional(type), operands, values);
        } else {
          return content;
        }
      },
      argument.content);
}

void run_step(const Step& step, const Operands& operands, std::vector<IValue>& values) {
  if (step.op.starts_with("island::")) {
    TORCH_CHECK(run_builtin(step, resolve_all(step, nullptr, operands, values), values),
                "quantized_island: program uses ", step.op, ", which this torchquant does not know");
    return;
  }
  const c10::OperatorHandle op = find_op(step.op);
  TORCH_CHECK(op.schema().arguments().size() == step.arguments.size() &&
                  op.schema().returns().size() == static_cast<size_t>(step.results),
              "quantized_island: program does not fit the schema ", op.schema());
  std::vector<IValue> stack = resolve_all(step, &op.schema(), operands, values);
  op.callBoxed(stack);
  for (IValue& result : stack) values.push_back(std::move(result));
}

InterpretedProgram::InterpretedProgram(std::string_view text)
    : program(Program::parse(text)), last_read(program.steps.size()) {
  std::vector<size_t> reader;  // by value: the last step that reads it, at first the one that computes it
  for (size_t i = 0; i < program.steps.size(); ++i) {
    for (const Argument& argument : program.steps[i].arguments) {
      for_each_reference(argument, [&](const Reference& reference) {
        if (reference.source == Source::kValue) reader[reference.index] = i;
      });
    }
    reader.resize(reader.size() + program.steps[i].results, i);
  }
  std::vector<bool> is_output(reader.size());
  for (const Reference& output : program.outputs) {
    if (output.source == Source::kValue) is_output[output.index] = true;
  }
  for (size_t value = 0; value < reader.size(); ++value) {
    if (!is_output[value]) last_read[reader[value]].push_back(static_cast<int64_t>(value));
  }
}

std::shared_ptr<const InterpretedProgram> find_program(std::string_view text) {
  // Texts of models that are gone stay until this many others came.
  constexpr size_t kMostPrograms = 256;
  static std::mutex mutex;
  // Found by the text as it is: a copy of it in every call would cost as much as enqueuing ops.
  static std::map<std::string, std::shared_ptr<const InterpretedProgram>, std::less<>> programs;
  const std::lock_guard lock(mutex);
  const auto found = programs.find(text);
  if (found != programs.end()) return found->second;
  auto parsed = std::make_shared<const InterpretedProgram>(text);
  if (programs.size() == kMostPrograms) programs.clear();
  programs.emplace(text, parsed);
  return parsed;
}

std::vector<at::Tensor> interpret(const InterpretedProgram& interpreted, const Operands& operands) {
  const Program& program = interpreted.program;
  std::vector<IValue> values;
  for (size_t i = 0; i < program.steps.size(); ++i) {
    run_step(program.steps[i], operands, values);
    for (const int64_t value : interpreted.last_read[i]) values[value] = IValue();
  }
  std::vector<at::Tensor> outputs;
  for (const Reference& output : program.outputs) {
    at::Tensor tensor = referred(output, operands, values).toTensor();
    // The op's results alias nothing, whatever views its steps made.
    for (const at::Tensor& input : operands.inputs) {
      if (input.is_alias_of(tensor)) tensor = tensor.clone();
    }
    outputs.push_back(std::move(tensor));
  }
  return outputs;
}

}  // namespace torchquant::island
