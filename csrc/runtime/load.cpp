#include "runtime/load.h"

#include <algorithm>

#include "archive/archive.h"
#include "c10/util/Exception.h"
#include "ops/cuda_library.h"
#include "runtime/check_parameters.h"
#include "runtime/device.h"
#include "torch/csrc/jit/serialization/import.h"

namespace torchquant {
namespace {

// The module in `file` on `device`, checked; its receipt goes to `receipt`.
torch::jit::Module load_checked(const std::string& path, const archive::VerifiedFile& file, at::Device device,
                                Receipt& receipt) {
  // The bytes are the ones that were written, so this is an op that a newer torchquant or torch knows, a device that is
  // not there, or a bad parameter. Texts of TorchScript go on over many lines about the source.
  const auto refuse = [&](const std::string& reason) {
    const size_t start = std::min(reason.find_first_not_of(" \n"), reason.size());
    TORCH_CHECK(false, "torchquant: cannot load '", path, "' (written by torchquant ", file.manifest.torchquant_version,
                " with torch ", file.manifest.torch_version,
                "): ", reason.substr(start, reason.find('\n', start) - start));
  };
  try {
    torch::jit::Module module = torch::jit::load(file.source, device, /*load_debug_files=*/false);
    module.eval();
    check_parameters(module);
    receipt = Receipt::from_json(file.manifest.receipt_json);
    return module;
  } catch (const c10::Error& error) {
    refuse(error.what_without_backtrace());
  } catch (const std::exception& error) {
    refuse(error.what());
  }
  __builtin_unreachable();
}

}  // namespace

torch::jit::Module load(const std::string& path, at::Device device, Receipt* receipt) {
  check_device(device);
  const archive::VerifiedFile file = archive::open_verified(path);
  ops::load_cuda_library();  // the module may be moved to a GPU later
  Receipt stored;
  // To a GPU goes what has been checked.
  torch::jit::Module module = load_checked(path, file, device.is_cuda() ? at::kCPU : device, stored);
  if (device.is_cuda()) move_to(module, device, &stored);
  if (receipt != nullptr) *receipt = stored;
  return module;
}

}  // namespace torchquant
