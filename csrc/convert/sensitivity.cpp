// The sensitivity scan; see sensitivity.h.
#include "convert/sensitivity.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <unordered_map>
#include <unordered_set>

#include "ATen/TensorOperators.h"
#include "ATen/core/grad_mode.h"
#include "ATen/ops/square.h"
#include "ATen/ops/sum.h"
#include "convert/graph.h"
#include "convert/layers.h"
#include "convert/on_codes.h"
#include "convert/passes.h"
#include "convert/pipeline.h"
#include "convert/weight.h"
#include "torch/csrc/jit/api/function_impl.h"
#include "torch/csrc/jit/passes/dead_code_elimination.h"
#include "torch/csrc/jit/passes/inliner.h"
#include "torch/csrc/jit/runtime/graph_executor.h"

namespace torchquant {
namespace {

using conversion::Conversion;
using conversion::Node;
using conversion::Value;
using torch::jit::Graph;
using torch::jit::Module;
using Nodes = std::unordered_set<const Node*>;
namespace kind = conversion::kind;

struct LayerNodes {
  std::string layer, kind;
  std::vector<const Node*> weights, inputs;
};

void add_once(std::vector<const Node*>& nodes, const Node* node) {
  if (std::find(nodes.begin(), nodes.end(), node) == nodes.end()) nodes.push_back(node);
}

// The fake-quants whose codes a layer reads as `value`: the ops between pass codes on.
void collect_input_fake_quants(const Conversion& conversion, const Value* value, std::vector<const Node*>& found) {
  const Node* node = value->node();
  if (conversion::is_fake_quant(node)) {
    add_once(found, node);
  } else if (conversion::is_concat(node)) {
    for (const Value* part : node->input(0)->node()->inputs()) collect_input_fake_quants(conversion, part, found);
  } else if (node->kind() == c10::prim::ListUnpack || conversion::acts_on_codes(conversion, node) ||
             conversion::pads_with_its_values(conversion, node)) {
    collect_input_fake_quants(conversion, node->input(0), found);
  }
}

// The module inlined but not frozen: freezing renames the types by which a node knows the module that ran it.
Conversion inlined(const Module& prepared) {
  TORCH_CHECK(prepared.find_method("forward"), "sensitivity_scan: the module has no method 'forward'");
  Module copy = prepared.clone();
  copy.eval();
  torch::jit::Inline(*copy.get_method("forward").graph());
  Conversion conversion(copy);
  conversion::remove_identities(conversion);
  conversion::simplify(conversion);
  conversion::normalize_shapes(conversion);
  conversion::normalize_convolution(conversion);
  conversion::normalize_linear(conversion);
  torch::jit::EliminateDeadCode(conversion.shared_graph());
  return conversion;
}

std::vector<LayerNodes> find_layers(const Conversion& conversion) {
  std::vector<LayerNodes> layers;
  for (const Node* node : conversion::all_nodes(conversion.graph())) {
    const Value* weight = conversion::layer_weight(node);
    const Node* fake_quant = weight ? conversion::weight_fake_quant(conversion, weight) : nullptr;
    if (!fake_quant) continue;
    const std::string name = conversion::layer_of(conversion, weight);
    auto layer =
        std::find_if(layers.begin(), layers.end(), [&](const LayerNodes& other) { return other.layer == name; });
    if (layer == layers.end()) {
      layers.push_back({name, conversion::layer_kind(conversion, node), {}, {}});
      layer = layers.end() - 1;
    }
    add_once(layer->weights, fake_quant);
    for (const Value* input : node->inputs()) {
      if (input != weight) collect_input_fake_quants(conversion, input, layer->inputs);
    }
  }
  TORCH_CHECK(!layers.empty(),
              "sensitivity_scan: the module has no layer with a fake-quantized weight; give what torchquant.trace "
              "makes of a prepared and calibrated model");
  return layers;
}

// Of a fake-quant with stored parameters their owner, of one that takes its scales from the tensor the module that ran
// it.
class FakeQuantPaths {
 public:
  explicit FakeQuantPaths(const Module& module) {
    for (const auto& child : module.named_modules()) by_type_[child.value.type().get()] = child.name;
  }

  std::string operator()(const Node* node) const {
    const bool stored = node->kind() == kind::fake_quantize &&
                        conversion::argument(node, "scale")->node()->kind() != kind::choose_qparams;
    if (stored) return conversion::quantize_path(node);
    std::string path;
    if (!node->callstack()) return path;
    for (const auto& entry : (*node->callstack())->vec()) {
      const auto& instance = std::get<2>(entry);
      const auto found = instance ? by_type_.find(instance->class_type().get()) : by_type_.end();
      if (found != by_type_.end()) path = found->second;
    }
    return path;
  }

 private:
  std::unordered_map<const c10::ClassType*, std::string> by_type_;
};

// A copy of the graph in which only the fake-quants `on` are left.
std::shared_ptr<Graph> with_only(const Conversion& conversion, const Nodes& on) {
  const std::shared_ptr<Graph> copy = conversion.graph().copy();
  const std::vector<Node*> nodes = conversion::all_nodes(conversion.graph()), copies = conversion::all_nodes(*copy);
  for (size_t i = 0; i < nodes.size(); ++i) {
    if (!conversion::is_fake_quant(nodes[i]) || on.count(nodes[i])) continue;
    copies[i]->output()->replaceAllUsesWith(copies[i]->input(0));
  }
  torch::jit::EliminateDeadCode(copy);
  return copy;
}

class Scanner {
 public:
  Scanner(Conversion conversion, const std::vector<std::vector<c10::IValue>>& batches)
      : conversion_(std::move(conversion)), batches_(batches), references_(outputs({})) {
    for (const Node* node : conversion::all_nodes(conversion_.graph())) {
      if (conversion::is_fake_quant(node)) all_.insert(node);
    }
  }

  const Conversion& conversion() const { return conversion_; }
  double all_sqnr_db() const { return sqnr_db(all_); }

  double alone_sqnr_db(const LayerNodes& layer) const {
    Nodes on(layer.weights.begin(), layer.weights.end());
    on.insert(layer.inputs.begin(), layer.inputs.end());
    return sqnr_db(on);
  }

  // What other layers read too stays quantized.
  double but_one_sqnr_db(const LayerNodes& layer, const std::vector<LayerNodes>& layers) const {
    Nodes on = all_;
    for (const Node* node : layer.weights) on.erase(node);
    for (const Node* node : layer.inputs) on.erase(node);
    for (const LayerNodes& other : layers) {
      if (other.layer != layer.layer) on.insert(other.inputs.begin(), other.inputs.end());
    }
    return sqnr_db(on);
  }

 private:
  double sqnr_db(const Nodes& on) const {
    SignalAndNoise sums;
    const std::vector<c10::IValue> actual = outputs(on);
    for (size_t i = 0; i < actual.size(); ++i) sums.add(references_[i], actual[i]);
    TORCH_CHECK(std::isfinite(sums.signal), "sensitivity_scan: the float model's outputs hold NaN or infinity");
    return sums.sqnr_db();
  }

  std::vector<c10::IValue> outputs(const Nodes& on) const {
    const torch::jit::GraphOptimizerEnabledGuard as_written(false);
    torch::jit::GraphFunction function(c10::QualifiedName("sensitivity_scan"), with_only(conversion_, on), nullptr);
    std::vector<c10::IValue> results;
    for (const std::vector<c10::IValue>& batch : batches_) {
      torch::jit::Stack stack{conversion_.module()._ivalue()};
      stack.insert(stack.end(), batch.begin(), batch.end());
      function.run(stack);
      results.push_back(stack.back());
    }
    return results;
  }

  Conversion conversion_;
  const std::vector<std::vector<c10::IValue>>& batches_;
  std::vector<c10::IValue> references_;
  Nodes all_;
};

void check_batches(const Module& prepared, const std::vector<std::vector<c10::IValue>>& batches) {
  TORCH_CHECK_VALUE(!batches.empty(), "sensitivity_scan: batches is empty; give at least one batch of inputs");
  const size_t wanted = prepared.get_method("forward").num_inputs() - 1;
  for (const auto& batch : batches) {
    TORCH_CHECK_VALUE(batch.size() == wanted, "sensitivity_scan: the model takes ", wanted, " inputs, got ",
                      batch.size());
  }
}

std::vector<c10::IValue> elements(const c10::IValue& value) {
  if (value.isTuple()) return value.toTupleRef().elements().vec();
  TORCH_CHECK_VALUE(value.isList(), "sqnr: the outputs must be tensors, or tuples and lists of them; got ",
                    value.tagKind());
  return value.toListRef().vec();
}

}  // namespace

std::vector<LayerFakeQuants> layer_fake_quants(const Module& prepared) {
  const Conversion conversion = inlined(prepared);
  const FakeQuantPaths path(conversion.module());
  std::vector<LayerFakeQuants> result;
  for (const LayerNodes& layer : find_layers(conversion)) {
    result.push_back({layer.layer, layer.kind, {}, {}});
    for (const Node* node : layer.weights) result.back().weights.push_back(path(node));
    for (const Node* node : layer.inputs) result.back().inputs.push_back(path(node));
  }
  return result;
}

void SignalAndNoise::add(const c10::IValue& reference, const c10::IValue& actual) {
  if (!reference.isTensor()) {
    const std::vector<c10::IValue> references = elements(reference), others = elements(actual);
    TORCH_CHECK_VALUE(references.size() == others.size(), "sqnr: the outputs hold ", references.size(), " and ",
                      others.size(), " values");
    for (size_t i = 0; i < references.size(); ++i) add(references[i], others[i]);
    return;
  }
  const at::Tensor x = reference.toTensor(), y = actual.toTensor();
  TORCH_CHECK_VALUE(x.sizes() == y.sizes(), "sqnr: the outputs have shapes ", x.sizes(), " and ", y.sizes());
  if (!x.is_floating_point()) return;
  const at::NoGradGuard no_grad;
  const at::Tensor exact = x.to(at::kDouble);
  signal += exact.square().sum().item<double>();
  noise += (exact - y.to(at::kDouble)).square().sum().item<double>();
}

double SignalAndNoise::sqnr_db() const {
  if (noise == 0) return std::numeric_limits<double>::infinity();
  // A NaN would leave the order of a ranking to chance.
  if (!std::isfinite(signal) || !std::isfinite(noise)) return -std::numeric_limits<double>::infinity();
  return 10 * std::log10(signal / noise);
}

std::vector<LayerSensitivity> SensitivityScan::ranking() const {
  std::vector<LayerSensitivity> ranked = rows;
  std::stable_sort(ranked.begin(), ranked.end(), [](const LayerSensitivity& a, const LayerSensitivity& b) {
    return a.alone_sqnr_db < b.alone_sqnr_db;
  });
  return ranked;
}

SensitivityScan scan_sensitivity(const Module& prepared, const std::vector<std::vector<c10::IValue>>& batches,
                                 const std::function<void(size_t, size_t)>& progress) {
  Conversion conversion = inlined(prepared);
  check_batches(prepared, batches);
  const at::NoGradGuard no_grad;
  const Scanner scanner(std::move(conversion), batches);
  const std::vector<LayerNodes> layers = find_layers(scanner.conversion());
  size_t done = 0;
  const auto advance = [&] {
    if (progress) progress(++done, 2 * layers.size() + 1);
  };
  SensitivityScan scan{scanner.all_sqnr_db(), {}};
  advance();
  for (const LayerNodes& layer : layers) {
    scan.rows.push_back({layer.layer, layer.kind, scanner.alone_sqnr_db(layer), 0});
    advance();
    scan.rows.back().but_one_sqnr_db = scanner.but_one_sqnr_db(layer, layers);
    advance();
  }
  return scan;
}

}  // namespace torchquant
