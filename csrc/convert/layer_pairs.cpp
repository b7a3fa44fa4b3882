// Takes single layers out of a conversion; see layer_pairs.h.
#include "convert/layer_pairs.h"

#include <deque>
#include <map>
#include <unordered_map>

#include "ATen/core/grad_mode.h"
#include "archive/archive.h"
#include "convert/graph.h"
#include "convert/layers.h"
#include "convert/pipeline.h"
#include "convert/weight.h"
#include "torch/csrc/jit/api/function_impl.h"
#include "torch/csrc/jit/passes/dead_code_elimination.h"
#include "torch/csrc/jit/runtime/graph_executor.h"

namespace torchquant {
namespace {

using conversion::Conversion;
using conversion::Node;
using conversion::Value;
using torch::jit::Graph;
using torch::jit::Module;

// Nodes as a module of their own: what they read and is constant becomes its buffers, the rest its inputs.
struct Extract {
  Module module;
  std::vector<Value*> inputs;  // of the graph that the nodes come from
};

Extract extract(const Conversion& conversion, const std::vector<Node*>& nodes) {
  Extract result{Module("Layer"), {}};
  const auto graph = std::make_shared<Graph>();
  Value* self = graph->addInput("self")->setType(result.module.type());
  std::unordered_map<const Value*, Value*> known;
  const auto value_of = [&](Value* value) {
    if (const auto found = known.find(value); found != known.end()) return found->second;
    const auto constant = conversion.resolve(value);
    if (!constant) {
      result.inputs.push_back(value);
      return known[value] = graph->addInput()->setType(c10::unshapedType(value->type()));
    }
    if (!constant->isTensor()) return known[value] = graph->insertConstant(*constant);
    const std::string name = "tensor_" + std::to_string(known.size());
    result.module.register_buffer(name, constant->toTensor().detach());
    return known[value] = graph->insertGetAttr(self, name);
  };
  for (Node* node : nodes) {
    Node* copy = graph->insertNode(graph->createClone(node, value_of));
    for (size_t i = 0; i < node->outputs().size(); ++i) known[node->output(i)] = copy->output(i);
  }
  graph->registerOutput(known.at(nodes.back()->output()));
  const c10::QualifiedName name(*result.module.type()->name(), "forward");
  result.module.type()->addMethod(result.module._ivalue()->compilation_unit()->create_function(name, graph));
  return result;
}

// The layers of a graph by name, in program order.
std::map<std::string, std::deque<Node*>> layers_of(const Conversion& conversion, Graph& graph) {
  std::map<std::string, std::deque<Node*>> layers;
  for (Node* node : conversion::all_nodes(graph)) {
    Value* weight = conversion::layer_weight(node);
    if (weight && conversion::weight_fake_quant(conversion, weight)) {
      layers[conversion::layer_of(conversion, weight)].push_back(node);
    }
  }
  return layers;
}

// A float layer and what its fused op took in, which stands behind it.
std::vector<Node*> fused_group(Node* layer, size_t fused) {
  std::vector<Node*> group{layer};
  for (size_t i = 0; i < fused; ++i) {
    Node* next = conversion::sole_user(group.back()->output());
    TORCH_INTERNAL_ASSERT(next, "a fused op took in what has several readers");
    group.push_back(next);
  }
  return group;
}

// Runs the graph and returns these values of it. Changes what the graph returns.
std::vector<std::vector<c10::IValue>> values_of(const Module& module, const std::shared_ptr<Graph>& graph,
                                                const std::vector<std::vector<Value*>>& wanted,
                                                const std::vector<c10::IValue>& inputs) {
  std::vector<Value*> values;
  for (const auto& group : wanted) values.insert(values.end(), group.begin(), group.end());
  graph->eraseOutput(0);
  graph->registerOutput(graph->insertNode(graph->createTuple(values))->output());
  const torch::jit::GraphOptimizerEnabledGuard as_written(false);
  torch::jit::GraphFunction function(c10::QualifiedName("layer_pairs"), graph, nullptr);
  torch::jit::Stack stack{module._ivalue()};
  stack.insert(stack.end(), inputs.begin(), inputs.end());
  function.run(stack);
  const auto& results = stack.back().toTupleRef().elements();
  std::vector<std::vector<c10::IValue>> groups;
  size_t next = 0;
  for (const auto& group : wanted) {
    groups.emplace_back();
    for (size_t i = 0; i < group.size(); ++i) groups.back().push_back(results[next++]);
  }
  return groups;
}

}  // namespace

std::vector<LayerPair> layer_pairs(const Module& prepared, const std::vector<c10::IValue>& inputs) {
  const at::NoGradGuard no_grad;
  Conversion conversion = conversion::start_conversion(prepared);
  std::shared_ptr<Graph> float_graph;  // as it is before the first layer is lowered
  conversion::run_passes(conversion, /*islands=*/false, [&](const std::string& pass) {
    if (pass == "sink_dequantize") float_graph = conversion.graph().copy();
  });
  TORCH_INTERNAL_ASSERT(float_graph, "no pass is called sink_dequantize");
  auto float_layers = layers_of(conversion, *float_graph);

  std::vector<LayerPair> pairs;
  std::vector<std::vector<Value*>> float_values, quantized_values;
  for (Node* node : conversion::all_nodes(conversion.graph())) {
    const auto& rows = conversion.rows(node);
    if (rows.empty() || rows[0].kernel.empty() || float_layers[rows[0].layer].empty()) continue;
    Node* layer = float_layers[rows[0].layer].front();
    float_layers[rows[0].layer].pop_front();
    if (node->owningBlock() != conversion.graph().block()) continue;
    Extract plain = extract(conversion, fused_group(layer, rows[0].fused.size())),
            lowered = extract(conversion, {node});
    pairs.push_back({rows[0].layer,
                     rows[0].kind,
                     rows[0].precision,
                     rows[0].kernel,
                     archive::pass_through_archive(plain.module),
                     archive::pass_through_archive(lowered.module),
                     {},
                     {}});
    float_values.push_back(plain.inputs);
    quantized_values.push_back(lowered.inputs);
  }
  const auto float_inputs = values_of(conversion.module(), float_graph, float_values, inputs);
  const auto quantized_inputs = values_of(conversion.module(), conversion.shared_graph(), quantized_values, inputs);
  for (size_t i = 0; i < pairs.size(); ++i) {
    pairs[i].float_inputs = float_inputs[i];
    pairs[i].quantized_inputs = quantized_inputs[i];
  }
  return pairs;
}

Module float_module(const Module& prepared) {
  const at::NoGradGuard no_grad;
  Conversion conversion = conversion::start_conversion(prepared);
  for (Node* node : conversion::all_nodes(conversion.graph())) {
    if (conversion::is_fake_quant(node)) node->output()->replaceAllUsesWith(node->input(0));
  }
  torch::jit::EliminateDeadCode(conversion.shared_graph());
  return archive::pass_through_archive(conversion.module());
}

}  // namespace torchquant
