// Tells the library what only the CUDA runtime knows; see cuda_device.h.
#include <c10/cuda/CUDAException.h>
#include <cuda_runtime_api.h>

#include "ops/cuda_device.h"

namespace torchquant::ops {
namespace {

int capability(int index) {
  int major = 0, minor = 0;
  C10_CUDA_CHECK(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, index));
  C10_CUDA_CHECK(cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, index));
  return 10 * major + minor;
}

[[maybe_unused]] const bool registered = (set_cuda_capability(capability), true);

}  // namespace
}  // namespace torchquant::ops
