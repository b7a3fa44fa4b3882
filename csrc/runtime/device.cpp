#include "runtime/device.h"

#include <set>
#include <vector>

#include "ATen/Context.h"
#include "ATen/core/Tensor.h"
#include "ATen/core/dispatch/Dispatcher.h"
#include "ATen/detail/CUDAHooksInterface.h"
#include "c10/util/Exception.h"
#include "ops/cuda_device.h"
#include "ops/island/program.h"
#include "torch/csrc/jit/ir/constants.h"
#include "torch/csrc/jit/ir/ir.h"

namespace torchquant {
namespace {

constexpr int kOldestCapability = 80;
// From which on GPUs multiply 8-bit floats, and the op that does.
constexpr int kFloat8Capability = 89;
constexpr const char* kFloat8Op = "quantized_linear_fp8";

std::string first_line(const std::string& text) { return text.substr(0, text.find('\n')); }

// Why torch cannot start CUDA: no driver, one that is too old, GPUs that are busy.
std::string torch_reason() {
  try {
    at::globalContext().lazyInitDevice(at::kCUDA);
  } catch (const c10::Error& error) {
    return first_line(error.what_without_backtrace());
  }
  return "";
}

GpuFacts gather_facts(at::Device device) {
  GpuFacts facts{};
  facts.torchquant_has_cuda = ops::require_cuda_library();
  facts.torch_has_cuda = at::globalContext().hasCUDART();
  if (!facts.torchquant_has_cuda || !facts.torch_has_cuda) return facts;
  facts.torch_reason = torch_reason();
  if (!facts.torch_reason.empty()) return facts;
  facts.gpus = static_cast<int64_t>(at::getNumGPUs());
  facts.index = device.has_index() ? device.index() : at::detail::getCUDAHooks().current_device();
  if (facts.index < facts.gpus) facts.capability = ops::cuda_capability()(static_cast<int>(facts.index));
  return facts;
}

// ---- ops --------------------------------------------------------------------------------------------------------

// Names of our ops without their namespace.
void collect_ops(const torch::jit::Block* block, std::set<std::string>& ops) {
  constexpr const char* kNamespace = "torchquant::";
  const auto note = [&](const std::string& op) {
    if (op.starts_with(kNamespace)) ops.insert(op.substr(std::string(kNamespace).size()));
  };
  for (const torch::jit::Node* node : block->nodes()) {
    const std::string op = node->kind().toQualString();
    note(op);
    if (op == "torchquant::quantized_island") {
      const auto program = torch::jit::toIValue(node->namedInput("program"));
      if (!program) continue;
      for (const island::Step& step : island::Program::parse(program->toStringView()).steps) note(step.op);
    }
    for (const torch::jit::Block* inner : node->blocks()) collect_ops(inner, ops);
  }
}

std::set<std::string> ops_of(const torch::jit::Module& module) {
  std::set<std::string> ops;
  for (const torch::jit::Module& submodule : module.modules()) {
    for (const torch::jit::Method& method : submodule.get_methods()) collect_ops(method.graph()->block(), ops);
  }
  return ops;
}

bool has_cuda_kernel(const std::string& op) {
  const auto found = c10::Dispatcher::singleton().findSchema({"torchquant::" + op, ""});
  return found && found->hasComputedKernelForDispatchKey(c10::DispatchKey::CUDA);
}

// "conv1 (quantized_conv), fc (quantized_linear)"; an op without a layer stands alone.
std::string layers_of(const std::set<std::string>& ops, const Receipt* receipt) {
  std::string text;
  const auto add = [&](const std::string& item) { text += (text.empty() ? "" : ", ") + item; };
  std::set<std::string> unnamed = ops;
  for (const ReceiptRow& row : receipt ? receipt->rows : std::vector<ReceiptRow>()) {
    const std::string op = row.kernel.substr(0, row.kernel.find('/'));
    if (!ops.count(op)) continue;
    add(row.layer + " (" + op + ")");
    unnamed.erase(op);
  }
  for (const std::string& op : unnamed) add(op);
  return text;
}

std::vector<at::Tensor> tensors_of(const torch::jit::Module& module) {
  std::vector<at::Tensor> tensors;
  for (const at::Tensor& parameter : module.parameters()) tensors.push_back(parameter);
  for (const at::Tensor& buffer : module.buffers()) tensors.push_back(buffer);
  return tensors;
}

}  // namespace

std::string why_unusable(const GpuFacts& facts) {
  if (!facts.torchquant_has_cuda) {
    return "this torchquant was built without CUDA; build it where nvcc and a torch for CUDA are installed";
  }
  if (!facts.torch_has_cuda) return "this torch was built without CUDA";
  if (!facts.torch_reason.empty()) return facts.torch_reason;
  if (facts.index >= facts.gpus) {
    return "torch sees " + std::to_string(facts.gpus) + (facts.gpus == 1 ? " GPU" : " GPUs") + ", from cuda:0 on";
  }
  if (facts.capability < kOldestCapability) {
    return "it is of compute capability " + std::to_string(facts.capability / 10) + "." +
           std::to_string(facts.capability % 10) + ", and the kernels need 8.0 (Ampere) or newer";
  }
  return "";
}

void check_device(at::Device device) {
  if (!device.is_cuda()) return;
  const std::string reason = why_unusable(gather_facts(device));
  TORCH_CHECK(reason.empty(), "torchquant: cannot use ", device, ": ", reason);
}

void check_runs_on(const torch::jit::Module& module, at::Device device, const Receipt* receipt) {
  if (!device.is_cuda()) return;
  std::set<std::string> missing = ops_of(module);
  std::erase_if(missing, has_cuda_kernel);
  TORCH_CHECK(missing.empty(), "torchquant: the module cannot run on ", device,
              ", because these layers have no CUDA kernel: ", layers_of(missing, receipt));
  if (needed_capability(module) == kOldestCapability) return;
  const int capability = gather_facts(device).capability;
  if (capability == 0) return;  // check_device() says what is wrong
  TORCH_CHECK(capability >= kFloat8Capability, "torchquant: the module cannot run on ", device,
              ", which is of compute ", "capability ", capability / 10, ".", capability % 10,
              ", because GPUs multiply 8-bit floats from 8.9 (Ada) on: ", layers_of({kFloat8Op}, receipt));
}

int needed_capability(const torch::jit::Module& module) {
  return ops_of(module).count(kFloat8Op) != 0 ? kFloat8Capability : kOldestCapability;
}

void move_to(torch::jit::Module& module, at::Device device, const Receipt* receipt) {
  check_device(device);
  check_runs_on(module, device, receipt);
  const std::vector<at::Tensor> tensors = tensors_of(module);
  std::vector<at::Tensor> moved;
  size_t bytes = 0;
  for (const at::Tensor& tensor : tensors) bytes += tensor.nbytes();
  try {
    for (const at::Tensor& tensor : tensors) moved.push_back(tensor.detach().to(device));
  } catch (const c10::OutOfMemoryError& error) {
    TORCH_CHECK_WITH(OutOfMemoryError, false, "torchquant: moving a module of ", bytes, " bytes to ", device,
                     " ran out of memory: ", first_line(error.what_without_backtrace()));
  }
  for (size_t i = 0; i < tensors.size(); ++i) tensors[i].set_data(moved[i]);
}

Receipt receipt_on(Receipt receipt, at::Device device) {
  if (!device.is_cuda()) return receipt;
  for (ReceiptRow& row : receipt.rows) {
    const size_t slash = row.kernel.find('/');
    if (slash == std::string::npos || row.kernel.substr(slash) == "/aten") continue;
    const std::string op = row.kernel.substr(0, slash);
    row.kernel = op + (op == "attention" ? "/aten" : "/cuda");  // there, attention is torch's
  }
  return receipt;
}

}  // namespace torchquant
