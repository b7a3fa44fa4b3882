// What the CPU and the CUDA half of torchquant::quantized_resize_linear share.
#pragma once

#include <ATen/core/Tensor.h>

#include <optional>

#include "export.h"
#include "kernels/image_axes.h"

namespace torchquant::ops {

// One axis of a resize from x to out; a missing height is one row.
TQ_API kernels::ResizeAxis resize_axis(const at::Tensor& x, const at::Tensor& out, bool align_corners,
                                       std::optional<at::ArrayRef<double>> scale_factors, bool height);

}  // namespace torchquant::ops
