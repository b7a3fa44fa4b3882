// CUDA half of quantized_embedding. Indices and scales are not read back: an index outside the table gives NaN
// (docs/numerics.md).
#include <torch/library.h>

#include "kernels/cuda/embedding.h"
#include "ops/cuda_call.h"
#include "ops/quantized_common.h"

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
  const at::Tensor dense_indices = indices.to(at::kLong).contiguous();
  const at::Tensor dense_weight = weight.contiguous();
  const at::Tensor dense_scale = weight_scale.contiguous();
  const at::Tensor dense_zero_point = float_or_undefined(weight_zero_point);
  const kernels::EmbeddingArgs args{dense_indices.const_data_ptr<int64_t>(),
                                    {dense_weight.const_data_ptr(), embedding_dim, static_cast<int32_t>(weight_bits),
                                     static_cast<int32_t>(weight_quant_min)},
                                    dense_scale.const_data_ptr<float>(),
                                    dense_zero_point.defined() ? dense_zero_point.const_data_ptr<float>() : nullptr,
                                    group_size.value_or(embedding_dim),
                                    nullptr};
  C10_CUDA_CHECK(kernels::cuda::embedding(args, dense_indices.numel(), weight.size(0), out.mutable_data_ptr(),
                                          float_type(out), c10::cuda::getCurrentCUDAStream(weight.get_device())));
  return out;
}

}  // namespace

TORCH_LIBRARY_IMPL(torchquant, CUDA, m) { m.impl("quantized_embedding", quantized_embedding); }

}  // namespace torchquant::ops
