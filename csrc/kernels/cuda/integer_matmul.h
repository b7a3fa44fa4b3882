// Batched products of two matrices of codes on the device. Called by csrc/ops/quantized_matmul_cuda.cpp; results have
// the bits of the reference (kernels/integer_matmul.h).
#pragma once

#include <cuda_runtime_api.h>

#include "kernels/integer_matmul.h"

namespace torchquant::kernels::cuda {

// All pointers are on the device.
cudaError_t integer_matmul(const MatmulArgs& args, cudaStream_t stream);

}  // namespace torchquant::kernels::cuda
