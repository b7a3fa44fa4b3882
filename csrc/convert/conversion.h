// What the passes of one conversion share: the module and its graph, the buffers that they add, and what became of each
// layer. Created by convert(); every pass takes one.
#pragma once

#include <memory>
#include <optional>
#include <stdexcept>
#include <string>
#include <unordered_map>
#include <unordered_set>
#include <vector>

#include "archive/receipt.h"
#include "convert/convert.h"
#include "convert/evaluate.h"
#include "convert/float_layers.h"
#include "torch/csrc/jit/api/module.h"
#include "torch/csrc/jit/ir/ir.h"

namespace torchquant::conversion {

// Why a layer cannot run on integers. Thrown by what reads a layer, before it has changed the graph; caught by the
// pass, which records a fallback.
struct CannotLower : std::runtime_error {
  using std::runtime_error::runtime_error;
};

// Number of dimensions of each graph input, where the module's graph says it.
using InputRanks = std::vector<std::optional<int64_t>>;

// Type, shape and every value.
bool same_tensor(const at::Tensor& a, const at::Tensor& b);

class Conversion {
 public:
  // `module` holds one inlined `forward`, which the passes rewrite.
  explicit Conversion(torch::jit::Module module, InputRanks input_ranks = {}, FloatLayers float_layers = {});

  torch::jit::Graph& graph() const { return *graph_; }
  const std::shared_ptr<torch::jit::Graph>& shared_graph() const { return graph_; }
  const torch::jit::Module& module() const { return module_; }
  const InputRanks& input_ranks() const { return input_ranks_; }
  const FloatLayers& float_layers() const { return float_layers_; }

  std::optional<c10::IValue> resolve(const torch::jit::Value* value, const Known& known = {}) const {
    return evaluate(value, module_, known);
  }

  // A buffer of the module, as a value that is defined at the top of the graph. Equal tensors share one buffer, so tied
  // weights and reused modules are stored once. `name` may hold dots.
  torch::jit::Value* buffer(const std::string& name, const at::Tensor& tensor);

  // What the receipt says of a node. `row.layer` is numbered ("conv#2") when the receipt is made.
  // Of an op on integers; its kernel is the op's own, its precision int8 unless the row says otherwise.
  void set_lowered(const torch::jit::Node* node, ReceiptRow row);
  // Of a layer that was to be lowered and stays float.
  void set_fallback(const torch::jit::Node* node, const std::string& layer, const std::string& kind,
                    const std::string& reason);
  // The rows of linear layers become rows of the one op that computes them all; those behind the first say "merged".
  void merge_rows(const std::vector<torch::jit::Node*>& nodes, const torch::jit::Node* merged);
  // The rows of `nodes` become rows of `island`, in this order.
  void move_rows(const std::vector<torch::jit::Node*>& nodes, const torch::jit::Node* island);
  // One row for a layer, several for an island, none for other nodes.
  const std::vector<ReceiptRow>& rows(const torch::jit::Node* node) const;
  bool is_fallback(const torch::jit::Node* node) const;

 private:
  torch::jit::Module module_;
  std::shared_ptr<torch::jit::Graph> graph_;
  InputRanks input_ranks_;
  FloatLayers float_layers_;
  std::vector<std::pair<at::Tensor, torch::jit::Value*>> buffers_;
  // No node that has a row is destroyed before the receipt is made, so its address stays its own.
  std::unordered_map<const torch::jit::Node*, std::vector<ReceiptRow>> rows_;
  std::unordered_set<const torch::jit::Node*> fallbacks_;
};

}  // namespace torchquant::conversion
