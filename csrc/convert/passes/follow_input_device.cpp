// Devices and tensors that tracing on a CPU copy baked into the graph -> the device of the first input, and buffers, so
// that the converted module runs wherever it is moved.
#include "convert/graph.h"
#include "convert/passes.h"

namespace torchquant::conversion {
namespace {

namespace prim = c10::prim;

Value* first_tensor_input(torch::jit::Graph& graph) {
  for (Value* input : graph.inputs()) {
    if (input->type()->kind() == c10::TypeKind::TensorType) return input;
  }
  return nullptr;
}

bool is_cpu_constant(const Conversion& conversion, const Node* node) {
  if (node->kind() != prim::Constant || node->output()->type()->kind() != c10::TypeKind::DeviceObjType) return false;
  return conversion.resolve(node->output())->toDevice().is_cpu();
}

// Single elements stay: they mix with tensors of every device.
bool is_tensor_constant(const Conversion& conversion, const Node* node) {
  if (node->kind() != prim::Constant || node->output()->type()->kind() != c10::TypeKind::TensorType) return false;
  return conversion.resolve(node->output())->toTensor().dim() > 0;
}

}  // namespace

void follow_input_device(Conversion& conversion) {
  Value* input = first_tensor_input(conversion.graph());
  Value* device = nullptr;
  for (Node* node : all_nodes(conversion.graph())) {
    if (is_tensor_constant(conversion, node)) {
      const at::Tensor tensor = conversion.resolve(node->output())->toTensor().detach();
      node->output()->replaceAllUsesWith(conversion.buffer("constant", tensor));
    } else if (input && is_cpu_constant(conversion, node)) {
      if (!device) device = insert_before(conversion.graph().block()->nodes().front(), "prim::device", {input});
      node->output()->replaceAllUsesWith(device);
    }
  }
}

}  // namespace torchquant::conversion
