// Finds and loads the CUDA half of the library; see cuda_library.h and cuda_device.h.
#include "ops/cuda_library.h"

#include <ATen/Context.h>
#include <c10/util/Exception.h>
#include <dlfcn.h>

#include <atomic>

#include "ops/cuda_device.h"

namespace torchquant::ops {
namespace {

// The folder of the library that this function is part of.
std::filesystem::path own_folder() {
  Dl_info info{};
  const auto* address = reinterpret_cast<const void*>(&load_cuda_library);
  return dladdr(address, &info) != 0 ? std::filesystem::path(info.dli_fname).parent_path() : std::filesystem::path();
}

std::filesystem::path cuda_library() { return own_folder() / "libtorchquant_cuda.so"; }

std::atomic<CudaCapability> capability_function{nullptr};

}  // namespace

bool load_shared_library(const std::filesystem::path& path) {
  if (!std::filesystem::exists(path)) return false;
  // A library that is loaded already, by Python or by the linker, is not loaded twice.
  if (dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL) == nullptr) {
    TORCH_CHECK(false, "torchquant: cannot load ", path.string(), ": ", dlerror());
  }
  return true;
}

void load_cuda_library() {
  static const bool loaded = at::globalContext().hasCUDA() && load_shared_library(cuda_library());
  static_cast<void>(loaded);
}

// Python and the linker may have loaded it from elsewhere.
bool require_cuda_library() { return cuda_capability() != nullptr || load_shared_library(cuda_library()); }

void set_cuda_capability(CudaCapability function) { capability_function = function; }

CudaCapability cuda_capability() { return capability_function; }

}  // namespace torchquant::ops
