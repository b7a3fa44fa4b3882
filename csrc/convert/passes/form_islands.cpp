// Each connected run of integer ops -> one torchquant::quantized_island, so that a run costs one dispatch and its
// executor may plan memory and threads for all of it. Attention, layer norms and sums that read floats of a run, and
// what moves floats between them, belong to it: a transformer would otherwise leave it five times a layer.
//
// A run must be convex: no path may leave it and come back, or its one op would have to wait for itself. Nodes get a
// level that goes up by one where a path leaves integers for floats; members of one level cannot reach each other
// through floats, so members of one level that are connected form a run.
#include <algorithm>
#include <functional>
#include <map>
#include <numeric>
#include <unordered_map>
#include <unordered_set>

#include "ATen/core/dispatch/Dispatcher.h"
#include "convert/graph.h"
#include "convert/on_codes.h"
#include "convert/passes.h"
#include "ops/island/program.h"
#include "torch/csrc/jit/ir/constants.h"

namespace torchquant::conversion {
namespace {

namespace prim = c10::prim;
using island::Reference;
using island::Source;

constexpr const char* kIsland = "torchquant::quantized_island";

bool is_type(const Value* value, c10::TypeKind kind) { return value->type()->kind() == kind; }
bool is_tensor(const Value* value) { return is_type(value, c10::TypeKind::TensorType); }
bool is_int(const Value* value) { return is_type(value, c10::TypeKind::IntType); }

bool is_tensor_list(const Value* value) {
  const auto list = value->type()->cast<c10::ListType>();
  return list && list->getElementType()->kind() == c10::TypeKind::TensorType;
}

// ---- what a program can hold ------------------------------------------------------------------------------------

template <typename Elements>
island::Argument literal_list(const Elements& elements) {
  island::List list;
  for (const auto& element : elements) list.push_back({element});
  return {std::move(list)};
}

std::optional<island::Argument> literal(const c10::IValue& value) {
  if (value.isNone()) return island::Argument{};
  if (value.isBool()) return island::Argument{value.toBool()};
  if (value.isInt()) return island::Argument{value.toInt()};
  if (value.isDouble()) return island::Argument{value.toDouble()};
  if (value.isString()) return island::Argument{value.toStringRef()};
  if (value.isIntList()) return literal_list(value.toIntVector());
  if (value.isDoubleList()) return literal_list(value.toDoubleVector());
  return std::nullopt;
}

bool is_stored(const Value* value) { return value->node()->kind() == prim::GetAttr && is_tensor(value); }

bool can_be_argument(const Value* value) {
  if (const auto constant = torch::jit::toIValue(value)) return literal(*constant).has_value();
  if (value->node()->kind() == prim::ListConstruct) {
    const auto elements = value->node()->inputs();
    return std::all_of(elements.begin(), elements.end(), can_be_argument);
  }
  return is_tensor(value) || is_int(value);
}

// ---- sizes ------------------------------------------------------------------------------------------------------

// How ops on sizes are called in a program. Traced graphs compute with sizes as tensors of one element, between
// prim::NumToTensor and aten::Int.
const char* size_operation(const Node* node) {
  static const std::map<std::string, const char*> names{{"add", island::kAddSizes},
                                                        {"sub", island::kSubtractSizes},
                                                        {"mul", island::kMultiplySizes},
                                                        {"floordiv", island::kDivideSizes},
                                                        {"floor_divide", island::kDivideSizes}};
  const auto found = node->kind().is_aten() ? names.find(node->kind().toUnqualString()) : names.end();
  return found == names.end() ? nullptr : found->second;
}

bool is_scalar_tensor(const Value* value);

// An operand of arithmetic on sizes.
bool is_size(const Value* value) {
  if (const auto constant = torch::jit::toIValue(value)) {
    return constant->isInt() ||
           (constant->isTensor() && constant->toTensor().dim() == 0 && constant->toTensor().scalar_type() == at::kLong);
  }
  return is_int(value) || is_scalar_tensor(value);
}

bool computes_size(const Node* node) {
  if (!size_operation(node) || !is_size(node->input(0)) || !is_size(node->input(1))) return false;
  if (node->inputs().size() == 2) return true;
  const auto alpha = torch::jit::toIValue(node->input(2));
  return node->inputs().size() == 3 && alpha && alpha->isInt() && alpha->toInt() == 1;
}

bool is_scalar_tensor(const Value* value) {
  return is_tensor(value) &&
         (value->node()->kind() == prim::NumToTensor ? is_int(value->node()->input()) : computes_size(value->node()));
}

// Nodes that may be computed both inside an island and outside.
bool is_glue(const Node* node) {
  if (node->kind() == prim::ListConstruct || computes_size(node)) return true;
  if (node->kind() == prim::NumToTensor) return is_int(node->input());
  if (is_aten(node, {"Int"})) return is_scalar_tensor(node->input());
  return is_aten(node, {"size"}) && node->inputs().size() == 2;
}

// ---- members ----------------------------------------------------------------------------------------------------

bool in_dispatcher(const Node* node) {
  const c10::FunctionSchema* schema = node->maybeSchema();
  return schema && !schema->is_mutable() && c10::Dispatcher::singleton().findSchema(schema->operator_name());
}

bool is_integer_op(const Node* node) {
  const std::string name = node->kind().toQualString();
  return node->kind() == kind::dequantize || (name.starts_with("torchquant::quantized_") && name != kIsland);
}

// Float ops with a step kind of their own, which nothing is lost by taking in even where the model ends with them.
bool is_float_layer(const Node* node) {
  const std::string name = node->kind().toQualString();
  return name == "torchquant::attention" || name == "torchquant::layer_norm";
}

bool is_sum(const Node* node) {
  return is_aten(node, {"add"}) && node->inputs().size() == 3 && is_tensor(node->input(0)) && is_tensor(node->input(1));
}

// A barrier keeps its place among all other nodes.
bool is_barrier(const Node* node) {
  const c10::FunctionSchema* schema = node->maybeSchema();
  return !node->blocks().empty() || node->hasSideEffects() || (schema && schema->is_mutable()) ||
         (schema && node->isNondeterministic());
}

class BlockIslands {
 public:
  BlockIslands(Conversion& conversion, torch::jit::Block* block) : conversion_(conversion), block_(block) {
    for (Node* node : block->nodes()) {
      index_[node] = nodes_.size();
      nodes_.push_back(node);
    }
    const std::vector<Node*> all = all_nodes(conversion.graph());
    writes_in_place_ = std::any_of(all.begin(), all.end(), [](const Node* node) {
      const c10::FunctionSchema* schema = node->maybeSchema();
      return schema != nullptr && schema->is_mutable();
    });
    for (auto node = nodes_.rbegin(); node != nodes_.rend(); ++node) {
      if (leads_on(*node)) leads_on_.insert(*node);
    }
    for (Node* node : nodes_) classify(node);
  }

  void form() {
    const std::vector<std::vector<Node*>> runs = find_runs();
    if (runs.empty()) return;
    sort_by_level();
    for (const std::vector<Node*>& run : runs) replace(run);
  }

 private:
  struct Info {
    int64_t level = 0;
    bool member = false;
    bool late = false;  // glue that reads a member of its level
  };

  const Info* find(const Value* value) const {
    const auto found = info_.find(value->node());
    return found == info_.end() ? nullptr : &found->second;
  }

  void classify(Node* node) {
    Info info;
    if (is_barrier(node)) {
      info.level = floor_ = std::max(floor_, next_level_);
    } else {
      info.member = is_member(node);
      const bool glue = is_glue(node);
      info.level = floor_;
      for (const Value* input : node->inputs()) {
        const Info* source = find(input);
        if (!source) continue;
        const bool leaves = (source->member || source->late) && !info.member && !glue;
        info.level = std::max(info.level, source->level + (leaves ? 1 : 0));
      }
      info.late = glue && std::any_of(node->inputs().begin(), node->inputs().end(), [&](const Value* input) {
                    const Info* source = find(input);
                    return source && (source->member || source->late) && source->level == info.level;
                  });
    }
    next_level_ = std::max(next_level_, info.level + (info.member || info.late ? 1 : 0));
    info_[node] = info;
  }

  static bool reads(const std::unordered_set<const Value*>& values, const Node* node) {
    return std::any_of(node->inputs().begin(), node->inputs().end(), [&](const Value* input) {
      if (input->node()->kind() == prim::ListConstruct) return reads(values, input->node());
      return values.count(input) != 0;
    });
  }

  // Whether floats that a node gives come to something that an island computes with.
  bool leads_on(const Node* node) const {
    const auto leads = [&](const torch::jit::Use& use) {
      const Node* user = use.user;
      if (user->kind() == kind::quantize || is_integer_op(user) || is_float_layer(user)) return true;
      const bool passes = is_sum(user) || user->kind() == prim::ListUnpack || moves_data(conversion_, user);
      return passes && leads_on_.count(user) != 0;
    };
    const auto outputs = node->outputs();
    return std::any_of(outputs.begin(), outputs.end(), [&](const Value* output) {
      return std::any_of(output->uses().begin(), output->uses().end(), leads);
    });
  }

  bool works_on_codes(const Node* node) const {
    const bool takes_codes =
        is_integer_op(node) || moves_data(conversion_, node) || is_concat(node) || is_aten(node, {"constant_pad_nd"});
    return node->kind() == kind::quantize || (takes_codes && reads(codes_, node));
  }

  bool works_on_floats(const Node* node) const {
    // Each output of an island has memory of its own: what is written to a view would not reach the tensor behind it.
    const bool moves = moves_data(conversion_, node) && !writes_in_place_;
    const bool passes = (is_sum(node) || moves) && leads_on_.count(node) != 0;
    return (passes || is_float_layer(node)) && reads(floats_, node);
  }

  bool is_member(Node* node) {
    const bool unpack =
        node->kind() == prim::ListUnpack && (codes_.count(node->input()) || floats_.count(node->input()));
    const bool on_codes = unpack ? codes_.count(node->input()) != 0 : works_on_codes(node);
    const bool op = on_codes || works_on_floats(node);
    if (!unpack && !(op && in_dispatcher(node) && has_good_results(node) &&
                     std::all_of(node->inputs().begin(), node->inputs().end(), can_be_argument))) {
      return false;
    }
    auto& values = on_codes && writes_codes(node) ? codes_ : floats_;
    values.insert(node->outputs().begin(), node->outputs().end());
    return true;
  }

  static bool has_good_results(const Node* node) {
    if (node->outputs().size() != 1) return false;
    if (is_tensor(node->output())) return true;
    const Node* reader = sole_user(node->output());
    return is_tensor_list(node->output()) && reader && reader->kind() == prim::ListUnpack;
  }

  bool writes_codes(const Node* node) const {
    if (node->kind() == kind::dequantize) return false;
    const Value* dtype = argument(node, "output_dtype");
    if (!dtype) return true;
    const auto type = torch::jit::toIValue(dtype);
    return type && type->isInt() && c10::isIntegralType(type->toScalarType(), /*includeBool=*/false);
  }

  // Members and glue that `value` is made of inside its level, to connect what is connected through glue.
  void connect(const Value* value, int64_t level, const std::function<void(const Node*)>& found) const {
    const Info* source = find(value);
    if (!source || source->level != level) return;
    if (source->member) return found(value->node());
    if (!source->late) return;
    for (const Value* input : value->node()->inputs()) connect(input, level, found);
  }

  std::vector<std::vector<Node*>> find_runs() {
    std::vector<size_t> parent(nodes_.size());
    std::iota(parent.begin(), parent.end(), 0);
    const std::function<size_t(size_t)> root = [&](size_t i) {
      return parent[i] == i ? i : parent[i] = root(parent[i]);
    };
    for (const Node* node : nodes_) {
      if (!info_.at(node).member) continue;
      for (const Value* input : node->inputs()) {
        connect(input, info_.at(node).level,
                [&](const Node* source) { parent[root(index_.at(node))] = root(index_.at(source)); });
      }
    }
    std::map<size_t, std::vector<Node*>> by_root;
    for (Node* node : nodes_) {
      if (info_.at(node).member) by_root[root(index_.at(node))].push_back(node);
    }
    std::vector<std::vector<Node*>> runs;
    for (auto& [first, run] : by_root) {
      if (is_worth_an_island(run)) runs.push_back(std::move(run));
    }
    return runs;
  }

  // One op gains nothing from being wrapped, and moving codes about is no work.
  static bool is_worth_an_island(const std::vector<Node*>& run) {
    const auto is_op = [](const Node* node) { return node->kind() != prim::ListUnpack; };
    const auto computes = [](const Node* node) { return !node->kind().is_aten() && node->kind() != prim::ListUnpack; };
    return std::count_if(run.begin(), run.end(), is_op) > 1 && std::any_of(run.begin(), run.end(), computes);
  }

  // Within a level, what reads no member comes first, because members may read it.
  void sort_by_level() {
    const auto key = [&](const Node* node) {
      const Info& info = info_.at(node);
      return std::pair(info.level, info.member || info.late);
    };
    std::stable_sort(nodes_.begin(), nodes_.end(), [&](const Node* a, const Node* b) { return key(a) < key(b); });
    for (Node* node : nodes_) node->moveBefore(block_->return_node());
  }

  void replace(const std::vector<Node*>& run);

  // Glue that reads the run's members; what reads it outside the run will find it after `node`.
  void move_glue_behind(Node* node, const std::unordered_set<const Node*>& run) {
    for (auto glue = nodes_.rbegin(); glue != nodes_.rend(); ++glue) {
      if (!info_.at(*glue).late) continue;
      bool reads_run = false;
      connect((*glue)->outputs()[0], info_.at(*glue).level,
              [&](const Node* member) { reads_run |= run.count(member) != 0; });
      if (reads_run && (*glue)->isBefore(node)) (*glue)->moveAfter(node);
    }
  }

  // Readers go before what they read.
  void destroy_unused(const std::unordered_set<const Node*>& run) {
    std::vector<Node*> candidates;
    std::copy_if(nodes_.begin(), nodes_.end(), std::back_inserter(candidates),
                 [&](const Node* node) { return run.count(node) || info_.at(node).late; });
    std::sort(candidates.begin(), candidates.end(), [&](Node* a, Node* b) { return index_.at(a) > index_.at(b); });
    std::unordered_set<const Node*> destroyed;
    for (Node* node : candidates) {
      if (node->hasUses()) continue;
      destroyed.insert(node);
      node->destroy();
    }
    std::erase_if(nodes_, [&](const Node* node) { return destroyed.count(node) != 0; });
  }

  bool is_late(const Node* node) const {
    const auto found = info_.find(node);
    return found != info_.end() && found->second.late;
  }

  // Whether anything but the island itself reads `value`. Glue counts for what reads its results.
  bool is_read_outside(const Value* value, const std::unordered_set<const Node*>& run) const {
    return std::any_of(value->uses().begin(), value->uses().end(), [&](const torch::jit::Use& use) {
      if (run.count(use.user)) return false;
      if (!is_late(use.user)) return true;
      const auto outputs = use.user->outputs();
      return std::any_of(outputs.begin(), outputs.end(),
                         [&](const Value* output) { return is_read_outside(output, run); });
    });
  }

  friend class ProgramWriter;

  Conversion& conversion_;
  bool writes_in_place_ = false;  // some op of the graph does
  torch::jit::Block* block_;
  std::vector<Node*> nodes_;
  std::unordered_map<const Node*, size_t> index_;
  std::unordered_map<const Node*, Info> info_;
  std::unordered_set<const Node*> leads_on_;
  std::unordered_set<const Value*> codes_, floats_;  // that members give
  int64_t floor_ = 0;                                // the level below which no later node may go
  int64_t next_level_ = 0;                           // the first level above all members so far
};

// Turns the nodes of one run into a program, and collects what it reads from outside.
class ProgramWriter {
 public:
  explicit ProgramWriter(const BlockIslands& islands) : islands_(islands) {}

  void add(Node* node) {
    island::Step step;
    const bool unpack = node->kind() == prim::ListUnpack;
    step.op = unpack ? island::kUnpack : c10::toString(node->schema().operator_name());
    for (Value* input : node->inputs()) step.arguments.push_back(argument(input));
    write(std::move(step), node->outputs());
  }

  void add_output(const Value* value) { program_.outputs.push_back(values_.at(value)); }

  const std::vector<Value*>& inputs() const { return inputs_; }
  const std::vector<Value*>& constants() const { return constants_; }
  const std::vector<Value*>& sizes() const { return sizes_; }
  std::string text() const { return program_.to_text(); }

 private:
  void write(island::Step step, at::ArrayRef<const Value*> results) {
    step.results = static_cast<int64_t>(results.size());
    program_.steps.push_back(std::move(step));
    for (const Value* result : results) values_[result] = {Source::kValue, count_++};
  }
  void write(island::Step step, at::ArrayRef<Value*> results) {
    write(std::move(step), std::vector<const Value*>(results.begin(), results.end()));
  }

  static bool is_same(const Value* a, const Value* b) {
    return a == b || (is_stored(a) && is_stored(b) && attribute_path(a) == attribute_path(b));
  }

  static Reference referred(Source source, std::vector<Value*>& list, Value* value) {
    const auto found =
        std::find_if(list.begin(), list.end(), [&](const Value* listed) { return is_same(listed, value); });
    const Reference reference{source, found - list.begin()};
    if (found == list.end()) list.push_back(value);
    return reference;
  }

  island::Argument argument(Value* value) {
    if (const auto constant = torch::jit::toIValue(value)) return *literal(*constant);
    if (const auto known = values_.find(value); known != values_.end()) return {known->second};
    if (value->node()->kind() == prim::ListConstruct) {
      island::List list;
      for (Value* element : value->node()->inputs()) list.push_back(argument(element));
      return {std::move(list)};
    }
    if (is_int(value)) return size(value);
    if (is_stored(value)) return {referred(Source::kConstant, constants_, value)};
    return {referred(Source::kInput, inputs_, value)};
  }

  // A size that depends on members is computed in the island, any other is handed in.
  island::Argument size(Value* value) {
    if (const auto constant = torch::jit::toIValue(value)) {
      return {constant->isTensor() ? constant->toTensor().item<int64_t>() : constant->toInt()};
    }
    if (const auto known = values_.find(value); known != values_.end()) return {known->second};
    Node* node = value->node();
    if (node->kind() == prim::NumToTensor || (is_aten(node, {"Int"}) && islands_.is_late(node)))
      return size(node->input());
    if (is_int(value) && !islands_.is_late(node)) return {referred(Source::kSize, sizes_, value)};
    const bool of_tensor = is_aten(node, {"size"});
    island::Step step;
    step.op = of_tensor ? island::kSizeOf : size_operation(node);
    step.arguments.push_back(of_tensor ? argument(node->input(0)) : size(node->input(0)));
    step.arguments.push_back(size(node->input(1)));
    write(std::move(step), node->outputs());
    return {values_.at(value)};
  }

  const BlockIslands& islands_;
  island::Program program_;
  std::unordered_map<const Value*, Reference> values_;
  int64_t count_ = 0;
  std::vector<Value*> inputs_, constants_, sizes_;
};

void BlockIslands::replace(const std::vector<Node*>& run) {
  const std::unordered_set<const Node*> members(run.begin(), run.end());
  ProgramWriter writer(*this);
  std::vector<Value*> outputs;
  for (Node* node : run) {
    writer.add(node);
    for (Value* output : node->outputs()) {
      if (!is_tensor(output) || !is_read_outside(output, members)) continue;
      writer.add_output(output);
      outputs.push_back(output);
    }
  }
  if (outputs.empty()) return;

  Node* last = *std::max_element(run.begin(), run.end(), [](const Node* a, const Node* b) { return a->isBefore(b); });
  torch::jit::Graph& graph = conversion_.graph();
  const torch::jit::WithInsertPoint guard(last->next());
  const auto list = [&](const c10::TypePtr& type, const std::vector<Value*>& values) {
    return graph.insertNode(graph.createList(type, values))->output();
  };
  Value* program = graph.insertConstant(writer.text());
  Node* node = graph.create(c10::Symbol::fromQualString(kIsland),
                            {list(c10::TensorType::get(), writer.inputs()), list(c10::IntType::get(), writer.sizes()),
                             list(c10::TensorType::get(), writer.constants()), program});
  node->output()->setType(c10::ListType::ofTensors());
  graph.insertNode(node)->copyMetadata(last);
  Node* results = graph.insertNode(graph.createListUnpack(node->output(), outputs.size()));
  move_glue_behind(results, members);
  for (size_t i = 0; i < outputs.size(); ++i) {
    outputs[i]->replaceAllUsesAfterNodeWith(results, results->outputs()[i]);
  }
  conversion_.move_rows(run, node);
  destroy_unused(members);
}

void form_in(Conversion& conversion, torch::jit::Block* block) {
  for (Node* node : block->nodes()) {
    for (torch::jit::Block* inner : node->blocks()) form_in(conversion, inner);
  }
  BlockIslands(conversion, block).form();
}

}  // namespace

void form_islands(Conversion& conversion) { form_in(conversion, conversion.graph().block()); }

}  // namespace torchquant::conversion
