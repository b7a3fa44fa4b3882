// Graph questions and edits shared by the passes; see graph.h.
#include "convert/graph.h"

#include <algorithm>
#include <functional>
#include <unordered_set>

#include "numerics/affine.h"

namespace torchquant::conversion {
namespace {

namespace prim = c10::prim;

const std::unordered_set<std::string>& movers() {
  static const std::unordered_set<std::string> names{"reshape",      "flatten",       "unflatten",
                                                     "permute",      "transpose",     "swapaxes",
                                                     "swapdims",     "movedim",       "t",
                                                     "numpy_T",      "squeeze",       "unsqueeze",
                                                     "slice",        "select",        "narrow",
                                                     "index_select", "expand",        "repeat",
                                                     "contiguous",   "clone",         "flip",
                                                     "roll",         "pixel_shuffle", "pixel_unshuffle",
                                                     "chunk",        "split",         "split_with_sizes",
                                                     "unsafe_chunk", "unsafe_split",  "unbind",
                                                     "tensor_split", "alias",         "detach"};
  return names;
}

std::string unqualified(const Node* node) { return node->kind().is_aten() ? node->kind().toUnqualString() : ""; }

const Value* first_leaf(const Value* value) {
  if (value->node()->kind() == prim::GetAttr) return value;
  for (const Value* input : value->node()->inputs()) {
    if (const Value* leaf = first_leaf(input)) return leaf;
  }
  return nullptr;
}

// The fake-quant module that owns a scale, also where the scale is computed from a parameter.
std::string owner_path(const Value* scale) {
  const Value* leaf = first_leaf(scale);
  return leaf ? parent_path(attribute_path(leaf)) : "";
}

int64_t as_zero_point(double stored, int64_t quant_min, int64_t quant_max) {
  const numerics::QRange range{static_cast<float>(quant_min), static_cast<float>(quant_max)};
  return static_cast<int64_t>(numerics::effective_zero_point(static_cast<float>(stored), range));
}

double number(const Conversion& conversion, const Value* value, const std::string& path) {
  const auto resolved = conversion.resolve(value);
  if (!resolved) throw CannotLower("the parameters of its fake-quant '" + path + "' are computed at run time");
  return resolved->toTensor().item<double>();
}

bool owns_modules(const c10::ClassType& type) {
  for (size_t i = 0; i < type.numAttributes(); ++i) {
    if (type.getAttribute(i)->is_module()) return true;
  }
  return false;
}

void use_whole_range(QuantParams& params, at::ScalarType dtype) {
  params.dtype = dtype;
  params.quant_min = dtype == at::kByte ? 0 : -128;
  params.quant_max = dtype == at::kByte ? 255 : 127;
}

// Range and type of integer codes: those of the op that made them, through ops that only move them.
void read_code_range(const Conversion& conversion, const Value* codes, QuantParams& params) {
  const Node* node = codes->node();
  const bool fused = argument(node, "output_dtype");
  const Value* dtype = argument(node, fused ? "output_dtype" : "dtype");
  const Value* low = argument(node, fused ? "output_quant_min" : "quant_min");
  const Value* high = argument(node, fused ? "output_quant_max" : "quant_max");
  if (dtype && low && high) {
    params.dtype = conversion.resolve(dtype)->toScalarType();
    params.quant_min = conversion.resolve(low)->toInt();
    params.quant_max = conversion.resolve(high)->toInt();
  } else if (dtype) {
    use_whole_range(params, conversion.resolve(dtype)->toScalarType());
  } else if (const auto constant = conversion.resolve(codes)) {
    use_whole_range(params, constant->toTensor().scalar_type());
  } else {
    read_code_range(conversion, node->input(0), params);
  }
}

std::optional<int64_t> max_rank(const Conversion& conversion, const Node* node) {
  const auto a = rank_of(conversion, node->input(0));
  if (node->input(1)->type()->kind() != c10::TypeKind::TensorType) return a;
  const auto b = rank_of(conversion, node->input(1));
  return a && b ? std::optional(std::max(*a, *b)) : std::nullopt;
}

std::optional<int64_t> rank_after_flatten(const Conversion& conversion, const Node* node) {
  const auto rank = rank_of(conversion, node->input(0));
  const auto first = conversion.resolve(node->input(1));
  const auto last = conversion.resolve(node->input(2));
  if (!rank || *rank == 0 || !first || !last) return std::nullopt;
  const auto wrap = [&](int64_t dim) { return dim < 0 ? dim + *rank : dim; };
  return *rank - (wrap(last->toInt()) - wrap(first->toInt()));
}

std::optional<int64_t> input_rank(const Conversion& conversion, const Value* value) {
  const auto inputs = value->owningGraph()->inputs();
  const auto found = std::find(inputs.begin(), inputs.end(), value);
  const size_t index = found - inputs.begin();
  return index < conversion.input_ranks().size() ? conversion.input_ranks()[index] : std::nullopt;
}

}  // namespace

bool is_aten(const Node* node, std::initializer_list<const char*> names) {
  const std::string name = unqualified(node);
  return std::any_of(names.begin(), names.end(), [&](const char* candidate) { return name == candidate; });
}

std::vector<Node*> all_nodes(torch::jit::Graph& graph) {
  std::vector<Node*> nodes;
  const std::function<void(torch::jit::Block*)> collect = [&](torch::jit::Block* block) {
    for (Node* node : block->nodes()) {
      nodes.push_back(node);
      for (torch::jit::Block* inner : node->blocks()) collect(inner);
    }
  };
  collect(graph.block());
  return nodes;
}

Node* sole_user(const Value* value) {
  if (value->uses().size() != 1) return nullptr;
  Node* user = value->uses()[0].user;
  return user->owningBlock() == value->node()->owningBlock() && user->kind() != prim::Return ? user : nullptr;
}

Value* argument(const Node* node, const std::string& name) {
  const c10::FunctionSchema* schema = node->maybeSchema();
  if (!schema) return nullptr;
  const auto index = schema->argumentIndexWithName(name);
  return index ? const_cast<Node*>(node)->input(*index) : nullptr;
}

bool moves_data(const Conversion& conversion, const Node* node) {
  if (is_aten(node, {"upsample_nearest1d", "upsample_nearest2d"})) return true;
  if (is_aten(node, {"__interpolate"})) {
    const auto mode = conversion.resolve(argument(node, "mode"));
    return mode && mode->toStringRef() == "nearest";
  }
  return movers().count(unqualified(node)) != 0;
}

std::string attribute_path(const Value* value) {
  const Node* node = value->node();
  if (node->kind() != prim::GetAttr) return "";
  const std::string parent = attribute_path(node->input());
  return parent.empty() ? node->s(c10::attr::name) : parent + "." + node->s(c10::attr::name);
}

std::string parent_path(const std::string& path) {
  const size_t dot = path.rfind('.');
  return dot == std::string::npos ? "" : path.substr(0, dot);
}

std::string op_layer(const Node* node, const std::string& kind) {
  for (const Value* input : node->inputs()) {
    const bool is_parameter = input->type()->kind() == c10::TypeKind::TensorType && !attribute_path(input).empty();
    if (is_parameter && !parent_path(attribute_path(input)).empty()) return parent_path(attribute_path(input));
  }
  std::string path;
  bool has_children = true;
  if (node->callstack()) {
    for (const auto& entry : (*node->callstack())->vec()) {
      const auto& instance = std::get<2>(entry);
      if (!instance || instance->instance_name().empty() || instance->instance_name() == "SELF") continue;
      if (!path.empty()) path += '.';
      path += instance->instance_name();
      has_children = owns_modules(*instance->class_type());
    }
  }
  if (path.empty()) return kind;
  return has_children ? path + "." + kind : path;
}

std::optional<int64_t> rank_of(const Conversion& conversion, const Value* value) {
  if (const auto type = value->type()->cast<c10::TensorType>(); type && type->dim()) return *type->dim();
  const Node* node = value->node();
  if (node->kind() == prim::Param) return input_rank(conversion, value);
  if (node->kind() == prim::GetAttr || node->kind() == prim::Constant) {
    const auto constant = conversion.resolve(value);
    return constant && constant->isTensor() ? std::optional(constant->toTensor().dim()) : std::nullopt;
  }
  if (is_aten(node, {"conv2d", "conv_transpose2d", "max_pool2d", "avg_pool2d", "adaptive_avg_pool2d"})) return 4;
  if (is_aten(node, {"conv1d", "conv_transpose1d", "max_pool1d", "avg_pool1d", "adaptive_avg_pool1d"})) return 3;
  if (is_aten(node, {"convolution", "_convolution", "_convolution_mode"})) return rank_of(conversion, node->input(1));
  if (is_aten(node, {"batch_norm",
                     "relu",
                     "relu6",
                     "hardtanh",
                     "hardswish",
                     "hardsigmoid",
                     "silu",
                     "gelu",
                     "sigmoid",
                     "tanh",
                     "linear",
                     "contiguous",
                     "dropout",
                     "softmax",
                     "layer_norm",
                     "permute",
                     "transpose",
                     "slice",
                     "clone",
                     "constant_pad_nd",
                     "upsample_nearest1d",
                     "upsample_nearest2d",
                     "upsample_linear1d",
                     "upsample_bilinear2d",
                     "leaky_relu",
                     "clamp"}) ||
      node->kind() == kind::fake_quantize || node->kind() == kind::quantize || node->kind() == kind::dequantize) {
    return rank_of(conversion, node->input(0));
  }
  if (is_aten(node, {"add", "sub", "mul", "div"})) return max_rank(conversion, node);
  if (is_aten(node, {"flatten"})) return rank_after_flatten(conversion, node);
  if (is_aten(node, {"reshape"}) && node->input(1)->node()->kind() == prim::ListConstruct) {
    return static_cast<int64_t>(node->input(1)->node()->inputs().size());
  }
  return std::nullopt;
}

Value* insert_before(Node* at, const std::string& name, const std::vector<Argument>& inputs,
                     const std::vector<Argument>& named_arguments) {
  const torch::jit::WithInsertPoint guard(at);
  Value* output = at->owningGraph()->insert(c10::Symbol::fromQualString(name), inputs, named_arguments);
  output->node()->copyMetadata(at);
  return output;
}

Value* per_dimension(const Conversion& conversion, Node* node, const std::string& name, size_t dims) {
  Value* value = argument(node, name);
  const auto resolved = conversion.resolve(value);
  if (!resolved || !resolved->isIntList() || resolved->toIntVector().size() != 1) return value;
  const torch::jit::WithInsertPoint guard(node);
  return node->owningGraph()->insertConstant(std::vector<int64_t>(dims, resolved->toIntVector()[0]));
}

Value* pool_stride(const Conversion& conversion, Node* node, size_t dims) {
  const auto stride = conversion.resolve(argument(node, "stride"));
  const bool empty = stride && stride->isIntList() && stride->toIntVector().empty();
  return per_dimension(conversion, node, empty ? "kernel_size" : "stride", dims);
}

void define_at_top(Value* value) {
  std::vector<Node*> ancestors;  // each after what it reads
  std::unordered_set<Node*> seen;
  const std::function<void(Node*)> collect = [&](Node* node) {
    if (node->kind() == prim::Param || !seen.insert(node).second) return;
    for (Value* input : node->inputs()) collect(input->node());
    ancestors.push_back(node);
  };
  collect(value->node());
  for (auto node = ancestors.rbegin(); node != ancestors.rend(); ++node) {
    Node* first = value->owningGraph()->block()->nodes().front();
    if (*node != first) (*node)->moveBefore(first);
  }
}

Node* copy_with_input(Node* node, Value* input) {
  torch::jit::Graph* graph = node->owningGraph();
  Node* copy = graph->createClone(node, [](Value* value) { return value; });
  copy->replaceInput(0, input);
  for (Value* output : copy->outputs()) {
    if (output->type()->kind() == c10::TypeKind::TensorType) output->setType(c10::TensorType::get());
  }
  copy->insertBefore(node);
  return copy;
}

std::optional<Quantized> quantized(const Conversion& conversion, const Value* value) {
  Node* node = const_cast<Node*>(value->node());
  if (node->kind() != kind::dequantize) return std::nullopt;
  Quantized result{node->input(0), node->input(1), node->input(2), {}, owner_path(node->input(1))};
  read_code_range(conversion, result.codes, result.params);
  result.params.scale = static_cast<float>(number(conversion, result.scale, result.path));
  result.params.zero_point = as_zero_point(number(conversion, result.zero_point, result.path), result.params.quant_min,
                                           result.params.quant_max);
  return result;
}

QuantParams quantize_params(const Conversion& conversion, const Node* quantize) {
  const std::string path = quantize_path(quantize);
  QuantParams params;
  read_code_range(conversion, quantize->output(), params);
  params.scale = static_cast<float>(number(conversion, quantize->input(1), path));
  params.zero_point = as_zero_point(number(conversion, quantize->input(2), path), params.quant_min, params.quant_max);
  return params;
}

std::string quantize_path(const Node* quantize) { return owner_path(quantize->input(1)); }

Value* insert_quantize(Node* at, Value* x, Value* scale, Value* zero_point, const QuantParams& params) {
  return insert_before(at, "torchquant::quantize", {x, scale, zero_point},
                       {{"dtype", params.dtype}, {"quant_min", params.quant_min}, {"quant_max", params.quant_max}});
}

Value* insert_dequantize(Node* at, Value* codes, Value* scale, Value* zero_point) {
  return insert_before(at, "torchquant::dequantize", {codes, scale, zero_point}, {{"dtype", at::kFloat}});
}

}  // namespace torchquant::conversion
