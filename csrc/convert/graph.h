// Questions about a graph that several passes ask, and the insertion of ops. Node surgery goes through here.
#pragma once

#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "c10/core/ScalarType.h"
#include "convert/conversion.h"
#include "torch/csrc/jit/ir/ir.h"

namespace torchquant::conversion {

using torch::jit::Node;
using torch::jit::Value;

// ---- op names ---------------------------------------------------------------------------------------------------
namespace kind {
inline const c10::Symbol fake_quantize = c10::Symbol::fromQualString("torchquant::fake_quantize");
inline const c10::Symbol fake_quantize_fp8 = c10::Symbol::fromQualString("torchquant::fake_quantize_fp8");
inline const c10::Symbol choose_qparams = c10::Symbol::fromQualString("torchquant::choose_qparams");
inline const c10::Symbol quantize = c10::Symbol::fromQualString("torchquant::quantize");
inline const c10::Symbol dequantize = c10::Symbol::fromQualString("torchquant::dequantize");
inline const c10::Symbol quantized_max_pool = c10::Symbol::fromQualString("torchquant::quantized_max_pool");
}  // namespace kind

// A fake-quant, to integers or to 8-bit floats.
inline bool is_fake_quant(const Node* node) {
  return node->kind() == kind::fake_quantize || node->kind() == kind::fake_quantize_fp8;
}

// True for "aten::relu" given {"relu", ...}.
bool is_aten(const Node* node, std::initializer_list<const char*> names);

// ---- walking ----------------------------------------------------------------------------------------------------
// The nodes of a graph in program order, those of loops and branches included. A snapshot: a pass may insert nodes
// while it walks it, and destroy those that it has passed.
std::vector<Node*> all_nodes(torch::jit::Graph& graph);

// The only reader of `value`, if it stands in the same block (moving work into a loop would repeat it).
Node* sole_user(const Value* value);

// The input called `name` in the node's schema; nullptr if it has none.
Value* argument(const Node* node, const std::string& name);

// An op that only moves values of its first input about, so that it does to codes what it does to floats.
bool moves_data(const Conversion& conversion, const Node* node);

// Path of the attribute behind a chain of GetAttr ("conv.weight"); empty for any other value.
std::string attribute_path(const Value* value);
std::string parent_path(const std::string& path);
// What the receipt calls a node without a quantized weight: the owner of its parameters, else the path of the module
// that computes it, with `kind` added where that module has children ("layer1.0.add").
std::string op_layer(const Node* node, const std::string& kind);

// ---- writing ----------------------------------------------------------------------------------------------------
using Argument = torch::jit::NamedValue;

// Inserts the op `name` before `at`, with arguments matched to its schema by name, and lends it the source of `at`.
Value* insert_before(Node* at, const std::string& name, const std::vector<Argument>& inputs,
                     const std::vector<Argument>& named_arguments = {});

// The setting `name` of `node` with one value for each of `dims` spatial dimensions; the op may also hold one for all.
Value* per_dimension(const Conversion& conversion, Node* node, const std::string& name, size_t dims);
// Of a pool: an empty stride means the kernel size.
Value* pool_stride(const Conversion& conversion, Node* node, size_t dims);

// Moves a constant value and all that it is made of to the top of the graph, so that every later node may read it.
void define_at_top(Value* value);

// A copy of `node` in front of it that reads `input` in place of the first input; its outputs are of unknown type.
Node* copy_with_input(Node* node, Value* input);

// ---- quantized tensors ------------------------------------------------------------------------------------------
struct QuantParams {
  float scale = 1.0f;
  int64_t zero_point = 0;
  int64_t quant_min = 0;
  int64_t quant_max = 255;
  c10::ScalarType dtype = c10::ScalarType::Float;  // of the codes; Float stands for a tensor that is not quantized

  bool same_codes(const QuantParams& other) const {
    return scale == other.scale && zero_point == other.zero_point && dtype == other.dtype;
  }
};

// A tensor that the graph holds as integers.
struct Quantized {
  Value* codes;
  Value* scale;  // the tensors that dequantize reads
  Value* zero_point;
  QuantParams params;
  std::string path;  // of the fake-quant that it came from
};

// What `value` is the dequantize of; nullopt for a float tensor, and for a dequantize of the user's own with parameters
// that no integer kernel takes: several, those of the run, or a zero point that is no code.
std::optional<Quantized> quantized(const Conversion& conversion, const Value* value);

// Parameters of a quantize node, nullopt as above, and its fake-quant's path.
std::optional<QuantParams> quantize_params(const Conversion& conversion, const Node* quantize);
std::string quantize_path(const Node* quantize);

Value* insert_quantize(Node* at, Value* x, Value* scale, Value* zero_point, const QuantParams& params);
Value* insert_dequantize(Node* at, Value* codes, Value* scale, Value* zero_point);

}  // namespace torchquant::conversion
