// Propagates shapes through a graph; see shapes.h.
#include "convert/shapes.h"

#include <limits>
#include <map>
#include <string>
#include <tuple>

#include "convert/graph.h"
#include "convert/weight.h"

namespace torchquant::conversion {
namespace {

namespace prim = c10::prim;

using Ints = std::vector<int64_t>;

Extent constant(int64_t n) { return {0, n}; }

// nullopt for what is computed at run time or is no list.
std::optional<Ints> ints(const Conversion& conversion, const Node* node, const char* name) {
  const Value* value = argument(node, name);
  const auto resolved = value ? conversion.resolve(value) : std::nullopt;
  return resolved && resolved->isIntList() ? std::optional(resolved->toIntVector()) : std::nullopt;
}

std::optional<int64_t> integer(const Conversion& conversion, const Value* value) {
  const auto resolved = value ? conversion.resolve(value) : std::nullopt;
  return resolved && resolved->isInt() ? std::optional(resolved->toInt()) : std::nullopt;
}

bool is_true(const Conversion& conversion, const Value* value) {
  const auto resolved = value ? conversion.resolve(value) : std::nullopt;
  return resolved && resolved->isBool() && resolved->toBool();
}

// One value for each of `dims` dimensions, or `absent` for all where the op has no such setting; nullopt if unknown.
std::optional<Ints> spread(const Conversion& conversion, const Node* node, const char* name, size_t dims,
                           int64_t absent) {
  if (!argument(node, name)) return Ints(dims, absent);
  const auto values = ints(conversion, node, name);
  if (values && values->size() == 1) return Ints(dims, values->front());
  return values && values->size() == dims ? values : std::nullopt;
}

}  // namespace

// The rule of each op: the shape of its first output, nullopt if nothing is known.
class ShapeRules {
 public:
  ShapeRules(const Conversion& conversion, Shapes& shapes) : conversion_(conversion), shapes_(shapes) {}

  void visit_input(const Value* input, std::optional<int64_t> rank) {
    if (const auto type = input->type()->cast<c10::TensorType>(); type && type->dim()) rank = *type->dim();
    if (rank) shapes_.shapes_[input] = fresh(*rank);
  }

  void visit(const Node* node) {
    if (node->outputs().empty()) return;
    const auto rule = rules().find(node->kind().toQualString());
    std::optional<Shape> shape = rule == rules().end() ? std::nullopt : (this->*rule->second)(node);
    if (!shape) return visit_input(node->output(0), std::nullopt);
    shapes_.shapes_[node->output(0)] = std::move(*shape);
  }

 private:
  using Rule = std::optional<Shape> (ShapeRules::*)(const Node*);

  static const std::map<std::string, Rule>& rules() {
    static const std::map<std::string, Rule> table = make_rules();
    return table;
  }

  static std::map<std::string, Rule> make_rules() {
    std::map<std::string, Rule> table{
        {"prim::GetAttr", &ShapeRules::stored},
        {"prim::Constant", &ShapeRules::stored},
        {"aten::linear", &ShapeRules::linear},
        {"aten::embedding", &ShapeRules::embedding},
        {"aten::matmul", &ShapeRules::product},
        {"aten::bmm", &ShapeRules::product},
        {"aten::mm", &ShapeRules::product},
        {"torchquant::quantized_matmul", &ShapeRules::product},
        {"aten::scaled_dot_product_attention", &ShapeRules::attention},
        {"torchquant::quantized_embedding", &ShapeRules::embedding},
        {"aten::flatten", &ShapeRules::flatten},
        {"aten::reshape", &ShapeRules::reshape},
        {"aten::view", &ShapeRules::reshape},
        {"aten::permute", &ShapeRules::permute},
        {"aten::unsqueeze", &ShapeRules::unsqueeze},
        {"aten::select", &ShapeRules::select},
        {"aten::slice", &ShapeRules::slice},
        {"aten::constant_pad_nd", &ShapeRules::pad},
        {"aten::pad", &ShapeRules::pad},
        {"aten::cat", &ShapeRules::cat},
        {"aten::mean", &ShapeRules::mean},
    };
    const auto add = [&table](Rule rule, std::initializer_list<const char*> names) {
      for (const char* name : names) table[name] = rule;
    };
    add(&ShapeRules::same, {"aten::relu",
                            "aten::relu6",
                            "aten::hardtanh",
                            "aten::hardswish",
                            "aten::hardsigmoid",
                            "aten::silu",
                            "aten::gelu",
                            "aten::sigmoid",
                            "aten::tanh",
                            "aten::leaky_relu",
                            "aten::elu",
                            "aten::clamp",
                            "aten::softplus",
                            "aten::mish",
                            "aten::batch_norm",
                            "aten::layer_norm",
                            "aten::group_norm",
                            "aten::softmax",
                            "aten::dropout",
                            "aten::contiguous",
                            "aten::clone",
                            "aten::flip",
                            "aten::roll",
                            "aten::neg",
                            "aten::abs",
                            "aten::exp",
                            "aten::sqrt",
                            "aten::pow",
                            "aten::detach",
                            "aten::alias",
                            "aten::to",
                            "torchquant::fake_quantize",
                            "torchquant::fake_quantize_fp8",
                            "torchquant::quantize",
                            "torchquant::dequantize",
                            "torchquant::quantized_lookup"});
    add(&ShapeRules::broadcast,
        {"aten::add", "aten::sub", "aten::mul", "aten::div", "torchquant::quantized_add", "torchquant::quantized_mul"});
    add(&ShapeRules::transpose, {"aten::transpose", "aten::swapaxes"});
    add(&ShapeRules::quantized_linear,
        {"torchquant::quantized_linear", "torchquant::quantized_linear_dynamic",
         "torchquant::quantized_linear_weight_only", "torchquant::quantized_linear_fp8"});
    add(&ShapeRules::convolution,
        {"aten::convolution", "aten::_convolution", "aten::_convolution_mode", "aten::conv1d", "aten::conv2d",
         "aten::conv_transpose1d", "aten::conv_transpose2d", "torchquant::quantized_conv"});
    add(&ShapeRules::pool, {"aten::max_pool1d", "aten::max_pool2d", "aten::avg_pool1d", "aten::avg_pool2d",
                            "torchquant::quantized_max_pool", "torchquant::quantized_avg_pool"});
    add(&ShapeRules::adaptive_pool,
        {"aten::adaptive_avg_pool1d", "aten::adaptive_avg_pool2d", "torchquant::quantized_adaptive_avg_pool"});
    add(&ShapeRules::resize, {"aten::upsample_nearest1d", "aten::upsample_nearest2d", "aten::__interpolate"});
    return table;
  }

  // ---- extents
  Extent fresh_extent() { return {++symbols_, 0}; }
  Shape fresh(int64_t rank) {
    Shape shape;
    for (int64_t i = 0; i < rank; ++i) shape.push_back(fresh_extent());
    return shape;
  }
  const Shape* input(const Node* node, size_t i) const { return shapes_.find(node->input(i)); }

  // floor(extent / divisor): the same symbol for the same quotient.
  Extent quotient(Extent extent, int64_t divisor) {
    extent = shapes_.resolved(extent);
    if (divisor == 1) return extent;
    if (extent.symbol == 0) return constant(extent.offset / divisor);
    auto& symbol = quotients_[{extent.symbol, extent.offset, divisor}];
    if (symbol == 0) symbol = fresh_extent().symbol;
    return {symbol, 0};
  }

  // Of a size that a forward computes for reshape.
  Extent extent_of(const Value* size) {
    if (const auto known = integer(conversion_, size)) return *known < 0 ? fresh_extent() : constant(*known);
    const Node* node = size->node();
    if (is_aten(node, {"Int"}) || node->kind() == prim::NumToTensor) return extent_of(node->input(0));
    if (!is_aten(node, {"size"}) || node->inputs().size() != 2) return fresh_extent();
    const Shape* shape = input(node, 0);
    const auto dim = shape ? dimension(node->input(1), shape->size()) : std::nullopt;
    return dim ? (*shape)[*dim] : fresh_extent();
  }

  std::optional<int64_t> dimension(const Value* value, size_t rank) const {
    const auto dim = integer(conversion_, value);
    if (!dim) return std::nullopt;
    const int64_t wrapped = *dim < 0 ? *dim + static_cast<int64_t>(rank) : *dim;
    return wrapped >= 0 && wrapped < static_cast<int64_t>(rank) ? std::optional(wrapped) : std::nullopt;
  }

  // The op says that the extent is n.
  void bind(Extent extent, int64_t n) {
    extent = shapes_.resolved(extent);
    if (extent.symbol != 0) shapes_.equal_[extent.symbol] = constant(n - extent.offset);
  }

  // A rank that an op asks of its input is that of what the input was made of without a change of shape.
  const Shape& assume(const Value* value, int64_t rank) {
    const auto rule = rules().find(value->node()->kind().toQualString());
    const bool keeps_shape = rule != rules().end() && rule->second == &ShapeRules::same;
    if (keeps_shape && !input(value->node(), 0)) assume(value->node()->input(0), rank);
    return shapes_.shapes_[value] = fresh(rank);
  }

  // ---- rules
  std::optional<Shape> same(const Node* node) {
    const Shape* shape = input(node, 0);
    return shape ? std::optional(*shape) : std::nullopt;
  }

  std::optional<Shape> stored(const Node* node) {
    if (node->output()->type()->kind() != c10::TypeKind::TensorType) return std::nullopt;
    const auto tensor = conversion_.resolve(node->output());
    if (!tensor || !tensor->isTensor()) return std::nullopt;
    Shape shape;
    for (const int64_t size : tensor->toTensor().sizes()) shape.push_back(constant(size));
    return shape;
  }

  std::optional<Shape> broadcast(const Node* node) {
    if (node->input(1)->type()->kind() != c10::TypeKind::TensorType) return same(node);
    const Shape *a = input(node, 0), *b = input(node, 1);
    if (!a || !b) return std::nullopt;
    const Shape& longer = a->size() >= b->size() ? *a : *b;
    const Shape& shorter = a->size() >= b->size() ? *b : *a;
    Shape shape = longer;
    const size_t shift = longer.size() - shorter.size();
    for (size_t i = 0; i < shorter.size(); ++i) shape[shift + i] = joined(longer[shift + i], shorter[i]);
    return shape;
  }

  Extent joined(Extent a, Extent b) {
    a = shapes_.resolved(a);
    b = shapes_.resolved(b);
    if (a == b || b == constant(1)) return a;
    if (a == constant(1) || b.symbol == 0) return b;
    return a.symbol == 0 ? a : fresh_extent();
  }

  std::optional<Shape> with_last(const Node* node, int64_t last) {
    auto shape = same(node);
    if (shape && !shape->empty()) shape->back() = constant(last);
    return shape;
  }

  std::optional<Shape> linear(const Node* node) {
    const auto weight = weight_shape(conversion_, node->input(1));
    if (!weight || weight->size() != 2) return std::nullopt;
    if (const Shape* x = input(node, 0); x && !x->empty()) bind(x->back(), weight->at(1));
    return with_last(node, weight->at(0));
  }

  // [..., m, k] and [..., k, n], with the same leading dimensions.
  std::optional<Shape> product(const Node* node) { return with_last_of(node, input(node, 1)); }
  std::optional<Shape> attention(const Node* node) { return with_last_of(node, input(node, 2)); }

  std::optional<Shape> with_last_of(const Node* node, const Shape* other) {
    auto shape = same(node);
    if (!shape || !other || shape->size() < 2 || shape->size() != other->size()) return std::nullopt;
    for (size_t i = 0; i + 2 < shape->size(); ++i) (*shape)[i] = joined((*shape)[i], (*other)[i]);
    shape->back() = other->back();
    return shape;
  }

  std::optional<Shape> quantized_linear(const Node* node) {
    const auto channels = conversion_.resolve(node->input(2));  // multiplier or weight_scale
    return channels ? with_last(node, channels->toTensor().size(0)) : std::nullopt;
  }

  std::optional<Shape> embedding(const Node* node) {
    const bool quantized = node->kind() != c10::aten::embedding;
    const Shape* indices = input(node, quantized ? 0 : 1);
    const auto weight = quantized ? std::nullopt : weight_shape(conversion_, node->input(0));
    const auto width = quantized ? integer(conversion_, argument(node, "embedding_dim"))
                                 : (weight ? std::optional(weight->back()) : std::nullopt);
    if (!indices) return std::nullopt;
    Shape shape = *indices;
    shape.push_back(width ? constant(*width) : fresh_extent());
    return shape;
  }

  // Of a window at each position: floor((in + 2 padding - dilation (kernel - 1) - 1) / stride) + 1.
  void slide(const Node* node, const Ints& kernel, Shape& shape) {
    const size_t dims = kernel.size();
    auto stride = spread(conversion_, node, "stride", dims, 1);
    if (const auto given = ints(conversion_, node, "stride"); given && given->empty()) stride = kernel;  // of a pool
    const auto padding = spread(conversion_, node, "padding", dims, 0);
    const auto dilation = spread(conversion_, node, "dilation", dims, 1);
    const Value* ceil_mode = argument(node, "ceil_mode");
    const bool floors = !ceil_mode || (conversion_.resolve(ceil_mode) && !is_true(conversion_, ceil_mode));
    for (size_t i = 0; i < dims; ++i) {
      Extent& extent = shape[shape.size() - dims + i];
      if (!stride || !padding || !dilation || !floors) {
        extent = fresh_extent();
        continue;
      }
      extent.offset += 2 * padding->at(i) - dilation->at(i) * (kernel[i] - 1) - 1;
      extent = quotient(extent, stride->at(i));
      extent.offset += 1;
    }
  }

  std::optional<Shape> convolution(const Node* node) {
    const auto own_kernel = ints(conversion_, node, "kernel_size");  // of quantized_conv
    const auto weight = own_kernel ? std::nullopt : weight_shape(conversion_, node->input(1));
    if (!own_kernel && !weight) return std::nullopt;
    const Ints kernel = own_kernel ? *own_kernel : Ints(weight->begin() + 2, weight->end());
    const Shape* x = input(node, 0);
    if (!x) x = &assume(node->input(0), static_cast<int64_t>(kernel.size()) + 2);
    if (x->size() != kernel.size() + 2) return std::nullopt;
    Shape shape = *x;
    const bool transposed =
        is_aten(node, {"conv_transpose1d", "conv_transpose2d"}) || is_true(conversion_, argument(node, "transposed"));
    const auto groups = integer(conversion_, argument(node, "groups"));
    if (weight && groups) bind(shape[1], transposed ? weight->at(0) : weight->at(1) * *groups);
    shape[1] = fresh_extent();
    if (own_kernel) {
      shape[1] = constant(conversion_.resolve(node->input(2))->toTensor().size(0));
    } else if (!transposed) {
      shape[1] = constant(weight->at(0));
    } else if (groups) {
      shape[1] = constant(weight->at(1) * *groups);
    }
    if (transposed) {
      for (size_t i = 2; i < shape.size(); ++i) shape[i] = fresh_extent();
    } else {
      slide(node, kernel, shape);
    }
    return shape;
  }

  std::optional<Shape> pool(const Node* node) {
    const size_t dims = is_aten(node, {"max_pool1d", "avg_pool1d"}) ? 1 : 2;
    const auto own = ints(conversion_, node, "kernel_size");
    const bool integer_op = !node->kind().is_aten();
    const auto kernel = spread(conversion_, node, "kernel_size", integer_op && own ? own->size() : dims, 1);
    const Shape* x = input(node, 0);
    if (!kernel || (x && x->size() < kernel->size())) return std::nullopt;
    Shape shape = x ? *x : fresh(static_cast<int64_t>(kernel->size()) + 2);
    slide(node, *kernel, shape);
    return shape;
  }

  std::optional<Shape> adaptive_pool(const Node* node) {
    const auto size = ints(conversion_, node, "output_size");
    if (!size) return std::nullopt;
    const size_t dims = is_aten(node, {"adaptive_avg_pool2d"}) ? 2 : size->size();
    const Shape* x = input(node, 0);
    if (x && x->size() < dims) return std::nullopt;
    Shape shape = x ? *x : fresh(static_cast<int64_t>(dims) + 2);
    for (size_t i = 0; i < dims; ++i) shape[shape.size() - dims + i] = constant((*size)[size->size() == 1 ? 0 : i]);
    return shape;
  }

  std::optional<Shape> resize(const Node* node) {
    auto shape = same(node);
    for (size_t i = 2; shape && i < shape->size(); ++i) (*shape)[i] = fresh_extent();
    return shape;
  }

  std::optional<Shape> flatten(const Node* node) {
    const Shape* x = input(node, 0);
    const auto first = x ? dimension(node->input(1), x->size()) : std::nullopt;
    const auto last = x ? dimension(node->input(2), x->size()) : std::nullopt;
    if (!first || !last || *first > *last) return std::nullopt;
    Shape shape(x->begin(), x->begin() + *first);
    shape.push_back(*first == *last ? (*x)[*first] : fresh_extent());
    shape.insert(shape.end(), x->begin() + *last + 1, x->end());
    return shape;
  }

  std::optional<Shape> reshape(const Node* node) {
    if (node->input(1)->type()->kind() != c10::TypeKind::ListType) return std::nullopt;
    Shape shape;
    if (const auto sizes = conversion_.resolve(node->input(1))) {
      for (const int64_t size : sizes->toIntVector()) shape.push_back(size < 0 ? fresh_extent() : constant(size));
      return shape;
    }
    if (node->input(1)->node()->kind() != prim::ListConstruct) return std::nullopt;
    for (const Value* size : node->input(1)->node()->inputs()) shape.push_back(extent_of(size));
    return shape;
  }

  std::optional<Shape> permute(const Node* node) {
    const Shape* x = input(node, 0);
    const auto dims = ints(conversion_, node, "dims");
    if (!x || !dims || dims->size() != x->size()) return std::nullopt;
    Shape shape;
    for (const int64_t dim : *dims) shape.push_back(x->at(dim < 0 ? dim + x->size() : dim));
    return shape;
  }

  std::optional<Shape> transpose(const Node* node) {
    auto shape = same(node);
    const auto a = shape ? dimension(node->input(1), shape->size()) : std::nullopt;
    const auto b = shape ? dimension(node->input(2), shape->size()) : std::nullopt;
    if (!a || !b) return std::nullopt;
    std::swap(shape->at(*a), shape->at(*b));
    return shape;
  }

  std::optional<Shape> unsqueeze(const Node* node) {
    auto shape = same(node);
    const auto dim = shape ? dimension(node->input(1), shape->size() + 1) : std::nullopt;
    if (!dim) return std::nullopt;
    shape->insert(shape->begin() + *dim, constant(1));
    return shape;
  }

  std::optional<Shape> select(const Node* node) {
    auto shape = same(node);
    const auto dim = shape ? dimension(node->input(1), shape->size()) : std::nullopt;
    if (!dim) return std::nullopt;
    shape->erase(shape->begin() + *dim);
    return shape;
  }

  std::optional<Shape> slice(const Node* node) {
    auto shape = same(node);
    const auto dim = shape && node->inputs().size() == 5 ? dimension(node->input(1), shape->size()) : std::nullopt;
    if (!dim) return std::nullopt;
    const auto start = conversion_.resolve(node->input(2)), end = conversion_.resolve(node->input(3));
    const bool from_start = start && (start->isNone() || start->toInt() == 0);
    const bool to_end = end && (end->isNone() || end->toInt() == std::numeric_limits<int64_t>::max());
    const bool whole = from_start && to_end && integer(conversion_, node->input(4)) == 1;
    if (!whole) shape->at(*dim) = fresh_extent();
    return shape;
  }

  std::optional<Shape> pad(const Node* node) {
    auto shape = same(node);
    const auto ends = ints(conversion_, node, "pad");
    if (!shape || !ends || ends->size() % 2 != 0 || ends->size() / 2 > shape->size()) return std::nullopt;
    for (size_t i = 0; i < ends->size(); ++i) (*shape)[shape->size() - 1 - i / 2].offset += (*ends)[i];
    return shape;
  }

  std::optional<Shape> cat(const Node* node) {
    if (node->input(0)->node()->kind() != prim::ListConstruct || node->input(0)->node()->inputs().empty())
      return std::nullopt;
    const Shape* first = input(node->input(0)->node(), 0);
    const auto dim = first ? dimension(node->input(1), first->size()) : std::nullopt;
    if (!dim) return std::nullopt;
    Shape shape = *first;
    shape[*dim] = constant(0);
    for (const Value* operand : node->input(0)->node()->inputs()) {
      const Shape* next = shapes_.find(operand);
      const Extent extent = next && next->size() == shape.size() ? shapes_.resolved((*next)[*dim]) : fresh_extent();
      if (extent.symbol != 0) {
        shape[*dim] = fresh_extent();
        break;
      }
      shape[*dim].offset += extent.offset;
    }
    return shape;
  }

  std::optional<Shape> mean(const Node* node) {
    auto shape = same(node);
    const auto dims = ints(conversion_, node, "dim");
    const Value* keepdim = argument(node, "keepdim");
    if (!shape || !dims || !keepdim || !conversion_.resolve(keepdim)) return std::nullopt;
    std::vector<bool> reduced(shape->size(), false);
    for (const int64_t dim : *dims) reduced.at(dim < 0 ? dim + shape->size() : dim) = true;
    Shape result;
    for (size_t i = 0; i < shape->size(); ++i) {
      if (!reduced[i]) result.push_back((*shape)[i]);
      if (reduced[i] && is_true(conversion_, keepdim)) result.push_back(constant(1));
    }
    return result;
  }

  const Conversion& conversion_;
  Shapes& shapes_;
  int64_t symbols_ = 0;
  std::map<std::tuple<int64_t, int64_t, int64_t>, int64_t> quotients_;
};

Shapes::Shapes(const Conversion& conversion) {
  ShapeRules rules(conversion, *this);
  torch::jit::Graph& graph = conversion.graph();
  for (size_t i = 0; i < graph.inputs().size(); ++i) {
    const auto& ranks = conversion.input_ranks();
    rules.visit_input(graph.inputs()[i], i < ranks.size() ? ranks[i] : std::nullopt);
  }
  // Twice: an op may tell the rank of a value that others before it read.
  for (int sweep = 0; sweep < 2; ++sweep) {
    for (const Node* node : all_nodes(graph)) rules.visit(node);
  }
}

std::optional<int64_t> Shapes::rank(const Value* value) const {
  const Shape* shape = find(value);
  return shape ? std::optional(static_cast<int64_t>(shape->size())) : std::nullopt;
}

bool Shapes::same(const Value* a, const Value* b) const {
  const Shape *x = find(a), *y = find(b);
  if (!x || !y || x->size() != y->size()) return false;
  for (size_t i = 0; i < x->size(); ++i) {
    if (!(resolved((*x)[i]) == resolved((*y)[i]))) return false;
  }
  return true;
}

const Shape* Shapes::find(const Value* value) const {
  const auto found = shapes_.find(value);
  return found == shapes_.end() ? nullptr : &found->second;
}

Extent Shapes::resolved(Extent extent) const {
  for (auto found = equal_.find(extent.symbol); found != equal_.end(); found = equal_.find(extent.symbol)) {
    extent = {found->second.symbol, found->second.offset + extent.offset};
  }
  return extent;
}

}  // namespace torchquant::conversion
