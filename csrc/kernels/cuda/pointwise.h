// Integer elementwise kernels on CUDA: add, multiply, table lookup. Called by csrc/ops/quantized_pointwise_cuda.cpp.
// Every function enqueues work on `stream` and returns its launch error.
#pragma once

#include <cuda_runtime_api.h>

#include "kernels/quantized_pointwise.h"
#include "kernels/repeat.h"

namespace torchquant::kernels::cuda {

// The runs of a repeated operand that one thread reads at once: Repeat::inner must be a multiple of it.
inline constexpr int64_t kRepeatedRun = 4;

// out[i] for `elements` elements, both operands dense but for their repeats.
cudaError_t add(const AddArgs& args, Repeat a, Repeat b, int64_t elements, cudaStream_t stream);
cudaError_t mul(const MulArgs& args, Repeat a, Repeat b, int64_t elements, cudaStream_t stream);
cudaError_t lookup(const LookupArgs& args, int64_t elements, cudaStream_t stream);

}  // namespace torchquant::kernels::cuda
