// What torchquant::quantized_matmul makes of its operands. Called by the op on each device and by its step in islands.
#pragma once

#include <ATen/core/Tensor.h>

#include "export.h"
#include "kernels/integer_matmul.h"

namespace torchquant::ops {

// Whether the kernels read an operand as it lies; any other is copied first.
TQ_API bool matmul_reads_a(const at::Tensor& a);
TQ_API bool matmul_reads_b(const at::Tensor& b);

// Sizes and strides; addresses and settings are the caller's. Operands lie as the kernels read them, and rows of `out`
// are dense.
TQ_API kernels::MatmulArgs matmul_args(const at::Tensor& a, const at::Tensor& b, const at::Tensor& out);

// Operations that a panel takes, for sharing out the work.
int64_t matmul_panel_cost(const kernels::MatmulArgs& args);

}  // namespace torchquant::ops
