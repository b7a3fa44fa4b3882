// Graphs for the converter's tests: modules from TorchScript source, one pass run on them, and a compact form of the
// result in which constants and attributes stand where they are read, so that a test can hold the whole graph before
// and after.
#pragma once

#include <map>
#include <memory>
#include <sstream>
#include <string>
#include <utility>
#include <vector>

#include "convert/conversion.h"
#include "torch/csrc/jit/frontend/resolver.h"
#include "torch/csrc/jit/frontend/sugared_value.h"
#include "torch/csrc/jit/ir/constants.h"
#include "torch/csrc/jit/passes/constant_propagation.h"
#include "torch/csrc/jit/passes/dead_code_elimination.h"

namespace torchquant::testing {

// Lets source text call torch.* and torchquant.* ops.
struct OpResolver : torch::jit::Resolver {
  std::shared_ptr<torch::jit::SugaredValue> resolveValue(const std::string& name, torch::jit::GraphFunction&,
                                                         const torch::jit::SourceRange&) override {
    if (name == "torch") return std::make_shared<torch::jit::BuiltinModule>("aten");
    return name == "torchquant" ? std::make_shared<torch::jit::BuiltinModule>(name) : nullptr;
  }
};

using Buffers = std::vector<std::pair<std::string, at::Tensor>>;

// A module with these buffers and `def forward(self, <inputs>)` with this body, one statement a line.
inline torch::jit::Module make_module(const Buffers& buffers, const std::string& inputs, const std::string& body) {
  torch::jit::Module module("Net");
  module.register_attribute("training", c10::BoolType::get(), true);
  for (const auto& [name, tensor] : buffers) module.register_buffer(name, tensor);
  std::string source = "def forward(self, " + inputs + "):\n";
  std::istringstream lines(body);
  for (std::string line; std::getline(lines, line);) source += "  " + line + "\n";
  module.define(source, std::make_shared<OpResolver>());
  return module;
}

class GraphText {
 public:
  explicit GraphText(const torch::jit::Graph& graph) {
    for (const auto* input : graph.inputs()) names_[input] = input->debugNameBase();
    print(*graph.block(), "");
  }
  std::string str() const { return text_.str(); }

 private:
  void print(const torch::jit::Block& block, const std::string& indent) {
    for (const torch::jit::Node* node : block.nodes()) {
      if (node->kind() == c10::prim::Constant || node->kind() == c10::prim::GetAttr) continue;
      text_ << indent << list(node->outputs()) << (node->outputs().empty() ? "" : " = ") << node->kind().toQualString()
            << "(" << list(node->inputs()) << ")\n";
      for (const torch::jit::Block* inner : node->blocks()) print(*inner, indent + "  ");
    }
    text_ << indent << "return " << list(block.outputs()) << "\n";
  }

  template <typename Values>
  std::string list(const Values& values) {
    std::string text;
    for (const torch::jit::Value* value : values) text += (text.empty() ? "" : ", ") + name(value);
    return text;
  }

  std::string name(const torch::jit::Value* value) {
    if (const auto constant = torch::jit::toIValue(value)) return literal(*constant);
    if (value->node()->kind() == c10::prim::GetAttr) {
      return name(value->node()->input()) + "." + value->node()->s(c10::attr::name);
    }
    auto& known = names_[value];
    if (known.empty()) known = "%" + std::to_string(++count_);
    return known;
  }

  static std::string literal(const c10::IValue& value) {
    std::ostringstream text;
    if (value.isTensor()) return "tensor";
    if (value.isDouble())
      text << static_cast<float>(value.toDouble());
    else
      text << value;
    return text.str();
  }

  std::map<const torch::jit::Value*, std::string> names_;
  int count_ = 0;
  std::ostringstream text_;
};

// The graph after `pass`, and its dead code removed as convert() does.
inline std::string after(const torch::jit::Module& module, void (*pass)(conversion::Conversion&),
                         conversion::InputRanks input_ranks = {}) {
  conversion::Conversion conversion(module.clone(), std::move(input_ranks));
  auto graph = conversion.shared_graph();
  torch::jit::ConstantPropagation(graph);  // lists become constants, as freezing makes them
  torch::jit::EliminateDeadCode(conversion.shared_graph());
  pass(conversion);
  torch::jit::EliminateDeadCode(conversion.shared_graph());
  conversion.graph().lint();
  return GraphText(conversion.graph()).str();
}

}  // namespace torchquant::testing
