// CUDA half of quantized_embedding. Indices and scales are not read back: an index outside the table gives NaN
// (docs/numerics.md).
#include <torch/library.h>

#include "kernels/cuda/embedding.h"
#include "ops/cuda_call.h"
#include "ops/quantized_embedding.h"

namespace torchquant::ops {
namespace {

at::Tensor quantized_embedding(const at::Tensor& indices, const at::Tensor& weight, const at::Tensor& weight_scale,
                               const std::optional<at::Tensor>& weight_zero_point, int64_t weight_bits,
                               int64_t weight_quant_min, int64_t embedding_dim, std::optional<int64_t> group_size,
                               at::ScalarType output_dtype) {
  const at::Tensor out = check_and_allocate<&quantized_embedding>(
      "torchquant::quantized_embedding", indices, weight, weight_scale, weight_zero_point, weight_bits,
      weight_quant_min, embedding_dim, group_size, output_dtype);
  const c10::cuda::CUDAGuard guard(weight.device());
  const EmbeddingOperands operands(indices, weight, weight_scale, weight_zero_point, weight_bits, weight_quant_min,
                                   embedding_dim, group_size);
  C10_CUDA_CHECK(kernels::cuda::embedding(operands.args, operands.indices.numel(), weight.size(0),
                                          out.mutable_data_ptr(), float_type(out),
                                          c10::cuda::getCurrentCUDAStream(weight.get_device())));
  return out;
}

}  // namespace

TORCH_LIBRARY_IMPL(torchquant, CUDA, m) { m.impl("quantized_embedding", quantized_embedding); }

}  // namespace torchquant::ops
