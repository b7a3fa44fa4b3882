// What torchquant::attention makes of its arguments. Called by the op and by its step in islands.
#pragma once

#include <ATen/core/Tensor.h>

#include <optional>

#include "kernels/attention.h"

namespace torchquant::ops {

// Whether the kernel computes it: [batch, heads, rows, depth] in fp32. Everything else is torch's.
bool attention_kernel_takes(const at::Tensor& query, const at::Tensor& key, const at::Tensor& value);

// Sizes and settings; addresses, strides and mask are the caller's. `scale` is 1 / sqrt(depth) where none is given.
kernels::AttentionArgs attention_args(const at::Tensor& query, const at::Tensor& key, bool is_causal,
                                      std::optional<double> scale);

template <typename T>
void set_head_strides(kernels::HeadRows<T>& rows, const at::Tensor& tensor) {
  rows.batch_stride = tensor.stride(0);
  rows.head_stride = tensor.stride(1);
  rows.row_stride = tensor.stride(2);
}

}  // namespace torchquant::ops
