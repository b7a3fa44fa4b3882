// The operands of quantized_embedding as kernels read them. Used by the op's CPU and CUDA halves.
#pragma once

#include <optional>

#include "kernels/quantized_linear.h"
#include "ops/quantized_common.h"

namespace torchquant::ops {

// Dense copies, or the tensors themselves where they are dense, and arguments that point into them; `args.out` is left
// to the caller.
struct EmbeddingOperands {
  EmbeddingOperands(const at::Tensor& indices_of_rows, const at::Tensor& table, const at::Tensor& table_scale,
                    const std::optional<at::Tensor>& table_zero_point, int64_t bits, int64_t quant_min, int64_t columns,
                    std::optional<int64_t> group_size)
      : indices(indices_of_rows.to(at::kLong).contiguous()),
        weight(table.contiguous()),
        scale(table_scale.contiguous()),
        zero_point(float_or_undefined(table_zero_point)),
        args{indices.const_data_ptr<int64_t>(),
             {weight.const_data_ptr(), columns, static_cast<int32_t>(bits), static_cast<int32_t>(quant_min)},
             scale.const_data_ptr<float>(),
             float_data_or_null(zero_point),
             group_size.value_or(columns),
             nullptr} {}

  at::Tensor indices, weight, scale, zero_point;
  kernels::EmbeddingArgs args;
};

}  // namespace torchquant::ops
