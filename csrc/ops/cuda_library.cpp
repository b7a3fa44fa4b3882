// Finds and loads the CUDA half of the library; see cuda_library.h and cuda_device.h.
#include "ops/cuda_library.h"

#include <ATen/Context.h>
#include <c10/util/Exception.h>
#include <dlfcn.h>

#include <atomic>

#include "ops/cuda_device.h"

namespace torchquant::ops {
namespace {

// The folder of the library that `address` is part of.
std::filesystem::path folder_of(const void* address) {
  Dl_info info{};
  return dladdr(address, &info) != 0 ? std::filesystem::path(info.dli_fname).parent_path() : std::filesystem::path();
}

std::filesystem::path cuda_library() {
  return folder_of(reinterpret_cast<const void*>(&load_cuda_library)) / "libtorchquant_cuda.so";
}

// torch's CUDA half lies beside its CPU half. Named by its path, because what our own library finds by itself depends
// on where each of them was installed.
std::filesystem::path torch_cuda_library() {
  return folder_of(reinterpret_cast<const void*>(&at::globalContext)) / "libtorch_cuda.so";
}

bool torch_cuda_is_loaded() { return dlopen(torch_cuda_library().c_str(), RTLD_NOW | RTLD_NOLOAD) != nullptr; }

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

// Without torch's CUDA half, torch is not asked: it would remember for good that there is no GPU, and a module could
// not be moved to one later.
void load_cuda_library() {
  static const bool loaded =
      torch_cuda_is_loaded() && at::globalContext().hasCUDA() && load_shared_library(cuda_library());
  static_cast<void>(loaded);
}

// Python and the linker may have loaded it from elsewhere.
bool require_cuda_library() {
  if (cuda_capability() != nullptr) return true;
  if (!std::filesystem::exists(cuda_library())) return false;
  load_shared_library(torch_cuda_library());
  return load_shared_library(cuda_library());
}

void set_cuda_capability(CudaCapability function) { capability_function = function; }

CudaCapability cuda_capability() { return capability_function; }

}  // namespace torchquant::ops
