// Devices and tensors that tracing baked into the graph -> the device of the first input, and buffers, so
// that the converted module runs wherever it is moved.
#include <algorithm>

#include "convert/graph.h"
#include "convert/passes.h"

namespace torchquant::conversion {
namespace {

namespace prim = c10::prim;

bool holds_tensor(const c10::Type& type) {
  if (type.kind() == c10::TypeKind::TensorType) return true;
  if (type.kind() != c10::TypeKind::TupleType) return false;
  const auto elements = type.containedTypes();
  return std::any_of(elements.begin(), elements.end(), [](const auto& element) { return holds_tensor(*element); });
}

// The first tensor among `values` and the tuples among them, which are unpacked in front of `at`.
Value* first_tensor(Node* at, at::ArrayRef<Value*> values) {
  const auto found = std::find_if(values.begin(), values.end(), [](Value* v) { return holds_tensor(*v->type()); });
  if (found == values.end()) return nullptr;
  if ((*found)->type()->kind() == c10::TypeKind::TensorType) return *found;
  Node* unpacked = at->owningGraph()->createTupleUnpack(*found)->insertBefore(at);
  return first_tensor(at, unpacked->outputs());
}

Value* insert_input_device(torch::jit::Graph& graph) {
  Node* at = graph.block()->nodes().front();
  Value* tensor = first_tensor(at, graph.inputs());
  return tensor ? insert_before(at, "prim::device", {tensor}) : nullptr;
}

bool is_device_constant(const Node* node) {
  return node->kind() == prim::Constant && node->output()->type()->kind() == c10::TypeKind::DeviceObjType;
}

// Single elements stay: they mix with tensors of every device.
bool is_tensor_constant(const Conversion& conversion, const Node* node) {
  if (node->kind() != prim::Constant || node->output()->type()->kind() != c10::TypeKind::TensorType) return false;
  return conversion.resolve(node->output())->toTensor().dim() > 0;
}

}  // namespace

void follow_input_device(Conversion& conversion) {
  Value* device = nullptr;
  for (Node* node : all_nodes(conversion.graph())) {
    if (is_tensor_constant(conversion, node)) {
      const at::Tensor tensor = conversion.resolve(node->output())->toTensor().detach().cpu();
      node->output()->replaceAllUsesWith(conversion.buffer("constant", tensor));
    } else if (is_device_constant(node)) {
      if (!device) device = insert_input_device(conversion.graph());
      if (device) node->output()->replaceAllUsesWith(device);
    }
  }
}

}  // namespace torchquant::conversion
