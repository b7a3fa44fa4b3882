// Evaluates constant parts of a graph; see evaluate.h.
#include "convert/evaluate.h"

#include <unordered_set>

#include "ATen/core/List.h"
#include "ATen/core/grad_mode.h"
#include "torch/csrc/jit/ir/constants.h"

namespace torchquant::conversion {
namespace {

using c10::IValue;
using torch::jit::Node;
using torch::jit::Value;
namespace prim = c10::prim;

bool is_pure(const Node* node) {
  switch (node->kind()) {
    case prim::Constant:
    case prim::GetAttr:
    case prim::ListConstruct:
    case prim::ListUnpack:
    case prim::TupleConstruct:
    case prim::TupleUnpack:
      return true;
    default:
      break;
  }
  const c10::FunctionSchema* schema = node->maybeSchema();
  return schema && !schema->is_mutable() && node->blocks().empty() && !node->hasSideEffects() &&
         !node->isNondeterministic();
}

// A list that a loop appends to is empty only where it is made.
bool is_written(const Value* value) {
  for (const auto& use : value->uses()) {
    const c10::FunctionSchema* schema = use.user->maybeSchema();
    if (!schema || use.offset >= schema->arguments().size()) continue;
    const c10::AliasInfo* alias = schema->arguments()[use.offset].alias_info();
    if (alias && alias->isWrite()) return true;
  }
  return false;
}

class Evaluator {
 public:
  Evaluator(const torch::jit::Module& self, const Known& known) : self_(self), values_(known) {}

  // Whether everything that `value` is made of is constant. Asked first, so that nothing is run in vain.
  bool is_constant(const Value* value) {
    if (values_.count(value) || constant_.count(value)) return true;
    if (is_written(value)) return false;
    const Node* node = value->node();
    const bool constant = node->kind() == prim::Param ? is_self(value) : is_pure(node) && has_constant_inputs(node);
    if (constant) constant_.insert(value);
    return constant;
  }

  const IValue& run(const Value* value) {
    const auto found = values_.find(value);
    if (found != values_.end()) return found->second;
    const Node* node = value->node();
    const std::vector<IValue> outputs = run_node(node);
    for (size_t i = 0; i < outputs.size(); ++i) values_.emplace(node->outputs()[i], outputs[i]);
    return values_.at(value);
  }

 private:
  bool is_self(const Value* value) const {
    return value == value->owningGraph()->inputs().at(0) && value->type() == self_.type();
  }

  bool has_constant_inputs(const Node* node) {
    for (const Value* input : node->inputs()) {
      if (!is_constant(input)) return false;
    }
    return true;
  }

  std::vector<IValue> run_node(const Node* node) {
    if (node->kind() == prim::Param) return {IValue(self_._ivalue())};
    if (node->kind() == prim::Constant) return {*torch::jit::toIValue(node->output())};
    torch::jit::Stack inputs;
    for (const Value* input : node->inputs()) inputs.push_back(run(input));
    switch (node->kind()) {
      case prim::GetAttr:
        return {inputs.at(0).toObjectRef().getAttr(node->s(c10::attr::name))};
      case prim::ListConstruct: {
        c10::impl::GenericList list(node->output()->type()->expectRef<c10::ListType>().getElementType());
        for (const IValue& input : inputs) list.push_back(input);
        return {IValue(list)};
      }
      case prim::ListUnpack:
        return inputs.at(0).toListRef().vec();
      case prim::TupleConstruct:
        return {IValue(c10::ivalue::Tuple::create(std::move(inputs)))};
      case prim::TupleUnpack:
        return inputs.at(0).toTupleRef().elements().vec();
      default:
        node->getOperation()(inputs);
        return inputs;
    }
  }

  const torch::jit::Module& self_;
  Known values_;
  std::unordered_set<const Value*> constant_;
};

}  // namespace

std::optional<IValue> evaluate(const Value* value, const torch::jit::Module& self, const Known& known) {
  const at::NoGradGuard no_grad;
  Evaluator evaluator(self, known);
  if (!evaluator.is_constant(value)) return std::nullopt;
  return evaluator.run(value);
}

}  // namespace torchquant::conversion
