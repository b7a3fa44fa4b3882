// torchquant::quantized_embedding: rows of an int8 or int4 table, dequantized as they are looked up. Emitted by the
// converter.
#include "ops/quantized_embedding.h"

#include <ATen/ops/empty.h>

#include "ops/quantized_common.h"

namespace torchquant::ops {
namespace {

constexpr const char* kOp = "quantized_embedding";

void check_indices(const at::Tensor& indices, int64_t rows) {
  const int64_t* data = indices.const_data_ptr<int64_t>();
  for (int64_t i = 0; i < indices.numel(); ++i) {
    TORCH_CHECK_INDEX(data[i] >= 0 && data[i] < rows, kOp, ": indices must lie in [0, ", rows, "), got ", data[i],
                      " at position ", i);
  }
}

at::Tensor quantized_embedding(const at::Tensor& indices, const at::Tensor& weight, const at::Tensor& weight_scale,
                               const std::optional<at::Tensor>& weight_zero_point, int64_t weight_bits,
                               int64_t weight_quant_min, int64_t embedding_dim, std::optional<int64_t> group_size,
                               at::ScalarType output_dtype) {
  TORCH_CHECK(indices.scalar_type() == at::kLong || indices.scalar_type() == at::kInt, kOp,
              ": indices must be int64 or int32, got ", dtype_name(indices.scalar_type()));
  TORCH_CHECK(embedding_dim >= 1, kOp, ": embedding_dim must be at least 1, got ", embedding_dim);
  check_weight_bits(kOp, weight, weight_bits, weight_quant_min);
  TORCH_CHECK(weight.dim() == 2 && weight.sym_size(1) == stored_columns(embedding_dim, weight_bits), kOp,
              ": weight must have shape [rows, ", stored_columns(embedding_dim, weight_bits), "] for weight_bits ",
              weight_bits, " and embedding_dim ", embedding_dim, ", got ", weight.sym_sizes());
  check_grouped_scale(kOp, weight_scale, weight_zero_point, weight.sym_size(0), embedding_dim, group_size);
  check_output_dtype(kOp, output_dtype);
  TORCH_CHECK(!is_code_type(output_dtype), kOp, ": output_dtype must be float32, bfloat16 or float16, got ",
              dtype_name(output_dtype));
  check_same_device(kOp, "weight_scale", weight_scale, weight);
  check_same_device(kOp, "indices", indices, weight);

  std::vector<c10::SymInt> sizes = indices.sym_sizes().vec();
  sizes.emplace_back(embedding_dim);
  if (!weight.is_cpu()) return at::empty_symint(sizes, weight.options().dtype(output_dtype));
  check_values(kOp, "weight_scale", weight_scale, /*positive=*/true);
  EmbeddingOperands operands(indices, weight, weight_scale, weight_zero_point, weight_bits, weight_quant_min,
                             embedding_dim, group_size);
  check_indices(operands.indices, weight.size(0));
  const at::Tensor out = at::empty_symint(sizes, weight.options().dtype(at::kFloat));

  operands.args.out = out.mutable_data_ptr<float>();
  parallel_range(operands.indices.numel(), embedding_dim,
                 [&](kernels::IndexRange range) { kernels::quantized_kernels().embedding(operands.args, range); });
  return out.to(output_dtype);
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(torchquant, m) {
  define(m,
         "quantized_embedding(Tensor indices, Tensor weight, Tensor weight_scale, Tensor? weight_zero_point=None, *, "
         "int weight_bits=8, int weight_quant_min=-127, int embedding_dim, int? group_size=None, "
         "ScalarType output_dtype) -> Tensor");
}
TORCH_LIBRARY_IMPL(torchquant, CPU, m) { m.impl("quantized_embedding", quantized_embedding); }
TORCH_LIBRARY_IMPL(torchquant, Meta, m) { m.impl("quantized_embedding", quantized_embedding); }

}  // namespace torchquant::ops
