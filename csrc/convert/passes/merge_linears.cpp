// Linear ops that read the same input and finish alike, as query, key and value do -> one over the rows of all their
// weights. A row's arithmetic is its own, so the results keep their bits; the input is read, and for dynamic layers
// quantized, once.
#include <algorithm>
#include <array>
#include <string_view>

#include "ATen/ops/cat.h"
#include "convert/graph.h"
#include "convert/passes.h"
#include "convert/written.h"

namespace torchquant::conversion {
namespace {

// Arguments with one entry per output channel; merging concatenates them. All others must be the same.
constexpr std::array<std::string_view, 5> kPerRow{"weight", "multiplier", "weight_scale", "weight_zero_point", "bias"};

bool is_per_row(const std::string& name) { return std::find(kPerRow.begin(), kPerRow.end(), name) != kPerRow.end(); }

bool is_linear(const Node* node) {
  return std::string_view(node->kind().toQualString()).starts_with("torchquant::quantized_linear");
}

bool is_none(const Value* value) { return value->type()->kind() == c10::TypeKind::NoneType; }

bool same_value(const Conversion& conversion, const Value* a, const Value* b) {
  if (a == b) return true;
  const auto first = conversion.resolve(a);
  const auto second = first ? conversion.resolve(b) : std::nullopt;
  if (!second || first->tagKind() != second->tagKind()) return false;
  return first->isTensor() ? same_tensor(first->toTensor(), second->toTensor()) : *first == *second;
}

// A stored tensor that no other op reads: of a shared one a merged copy would be one more.
bool is_own_tensor(const Conversion& conversion, const Value* value) {
  const auto resolved = conversion.resolve(value);
  return resolved && resolved->isTensor() && value->uses().size() == 1;
}

// Codes of one layer have the qparams of its own output; layers whose outputs are quantized hardly ever share them.
bool writes_floats(const Conversion& conversion, const Node* node) {
  const Value* dtype = argument(node, "output_dtype");
  const auto resolved = dtype ? conversion.resolve(dtype) : std::nullopt;
  return !dtype || (resolved && resolved->isInt() && c10::isFloatingType(resolved->toScalarType()));
}

bool can_merge(const Conversion& conversion, const Node* first, const Node* second) {
  if (first->kind() != second->kind() || first->owningBlock() != second->owningBlock()) return false;
  for (size_t i = 0; i < first->inputs().size(); ++i) {
    const Value* a = first->input(i);
    const Value* b = second->input(i);
    const std::string& name = first->schema().arguments()[i].name();
    const bool concatenates = is_per_row(name) && !is_none(a) && !is_none(b);
    const bool fits = concatenates
                          ? (name != "weight" || (is_own_tensor(conversion, a) && is_own_tensor(conversion, b)))
                          : same_value(conversion, a, b);
    if (!fits) return false;
  }
  return true;
}

// quantize ops that write the same codes: every layer that was prepared by itself has its own.
void share_quantize(Conversion& conversion, const Written& written) {
  std::vector<Node*> kept;
  for (Node* node : all_nodes(conversion.graph())) {
    if (node->kind() != kind::quantize || written.count(node->input(0))) continue;
    const auto same = std::find_if(kept.begin(), kept.end(), [&](const Node* other) {
      if (other->owningBlock() != node->owningBlock() || other->input(0) != node->input(0)) return false;
      for (size_t i = 1; i < node->inputs().size(); ++i) {
        if (!same_value(conversion, other->input(i), node->input(i))) return false;
      }
      return true;
    });
    if (same == kept.end()) {
      kept.push_back(node);
      continue;
    }
    node->output()->replaceAllUsesWith((*same)->output());
    node->destroy();
  }
}

// The concatenation of argument `i` of all nodes as one buffer, named after the first.
Value* concatenate(Conversion& conversion, const std::vector<Node*>& nodes, size_t i) {
  std::vector<at::Tensor> parts;
  for (const Node* node : nodes) parts.push_back(conversion.resolve(node->input(i))->toTensor());
  std::string path = attribute_path(nodes.front()->input(i));
  return conversion.buffer((path.empty() ? "linear" : path) + "_merged", at::cat(parts));
}

void merge(Conversion& conversion, const std::vector<Node*>& nodes) {
  Node* first = nodes.front();
  std::vector<int64_t> rows;
  for (const Node* node : nodes) rows.push_back(conversion.resolve(node->input(1))->toTensor().size(0));
  Node* merged = conversion.graph().createClone(first, [](Value* value) { return value; });
  merged->insertBefore(first);
  for (size_t i = 0; i < first->inputs().size(); ++i) {
    if (!is_per_row(first->schema().arguments()[i].name()) || is_none(first->input(i))) continue;
    merged->replaceInput(i, concatenate(conversion, nodes, i));
  }
  merged->output()->setType(c10::TensorType::get());
  Value* parts =
      insert_before(first, "aten::split_with_sizes", {merged->output()}, {{"split_sizes", rows}, {"dim", -1}});
  Node* unpack = conversion.graph().create(c10::prim::ListUnpack, {parts}, nodes.size());
  unpack->insertBefore(first);
  conversion.merge_rows(nodes, merged);
  for (size_t i = 0; i < nodes.size(); ++i) {
    unpack->output(i)->setType(c10::TensorType::get());
    nodes[i]->output()->replaceAllUsesWith(unpack->output(i));
    nodes[i]->destroy();
  }
}

}  // namespace

void merge_linears(Conversion& conversion) {
  const Written written = written_values(conversion);  // between two readers of one value a write may stand
  share_quantize(conversion, written);
  std::vector<std::vector<Node*>> groups;
  for (Node* node : all_nodes(conversion.graph())) {
    if (!is_linear(node) || !writes_floats(conversion, node) || written.count(node->input(0))) continue;
    if (written.count(node->output())) continue;  // the parts of one result would be views of one another's memory
    const auto group = std::find_if(groups.begin(), groups.end(), [&](const std::vector<Node*>& other) {
      return can_merge(conversion, other.front(), node);
    });
    if (group == groups.end()) {
      groups.push_back({node});
    } else {
      group->push_back(node);
    }
  }
  for (const std::vector<Node*>& group : groups) {
    if (group.size() > 1) merge(conversion, group);
  }
}

}  // namespace torchquant::conversion
