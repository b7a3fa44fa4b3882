// Rows of integer tables, dequantized as they are looked up, on CUDA. Called by csrc/ops/quantized_embedding_cuda.cpp.
#pragma once

#include <cuda_runtime_api.h>

#include "kernels/fake_quantize.h"
#include "kernels/quantized_linear.h"

namespace torchquant::kernels::cuda {

// Enqueues the lookup of `count` indices in a table of `rows` rows; args.out holds elements of `out_type`. A row whose
// index lies outside [0, rows) becomes NaN: the device cannot raise an error.
cudaError_t embedding(const EmbeddingArgs& args, int64_t count, int64_t rows, void* out, FloatType out_type,
                      cudaStream_t stream);

}  // namespace torchquant::kernels::cuda
