// What the library asks of its CUDA half. Called by runtime/device.cpp.
#pragma once

#include "export.h"

namespace torchquant::ops {

// Loads libtorchquant_cuda.so, even where torch sees no GPU; false where it was not built. Throws c10::Error, in one
// sentence, if it cannot be loaded. A program that links torch's CPU library alone gets the CUDA one by this, if it
// comes before the first question to torch about GPUs.
TQ_API bool require_cuda_library();

// Compute capability of GPU `index`: 90 for sm_90. libtorchquant_cuda.so gives the function when it is loaded.
using CudaCapability = int (*)(int index);
TQ_API void set_cuda_capability(CudaCapability function);
// Null while that library is not loaded.
TQ_API CudaCapability cuda_capability();

}  // namespace torchquant::ops
