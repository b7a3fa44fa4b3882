#include "runtime/load.h"

#include "archive/archive.h"
#include "c10/util/Exception.h"
#include "runtime/check_parameters.h"
#include "torch/csrc/jit/serialization/import.h"

namespace torchquant {

torch::jit::Module load(const std::string& path, at::Device device, Receipt* receipt) {
  const archive::VerifiedFile file = archive::open_verified(path);
  try {
    torch::jit::Module module = torch::jit::load(file.source, device, /*load_debug_files=*/false);
    module.eval();
    check_parameters(module);
    if (receipt != nullptr) *receipt = Receipt::from_json(file.manifest.receipt_json);
    return module;
  } catch (const c10::Error& error) {
    // The bytes are the ones that were written, so this is an op that a newer torchquant or torch knows, a device that is
    // not there, or a bad parameter.
    TORCH_CHECK(false, "torchquant: cannot load '", path, "' (written by torchquant ", file.manifest.torchquant_version,
                " with torch ", file.manifest.torch_version, "): ", error.what_without_backtrace());
  }
}

}  // namespace torchquant
