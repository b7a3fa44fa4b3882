// Loads libtorchquant_cuda.so for programs that link libtorchquant.so alone. Called by the C++ entry points of the ops,
// by load() and by convert().
#pragma once

#include <filesystem>

#include "export.h"

namespace torchquant::ops {

// At the first call on a machine where torch has a GPU: registers the CUDA kernels of the ops by loading
// libtorchquant_cuda.so from beside libtorchquant.so, where it was built and is not loaded yet. Without a GPU, does
// nothing. Throws c10::Error, in one sentence, if the library cannot be loaded.
TQ_API void load_cuda_library();

// Loads `path` if it is there; whether it is.
TQ_API bool load_shared_library(const std::filesystem::path& path);

}  // namespace torchquant::ops
