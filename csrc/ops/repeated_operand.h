// Operands of elementwise ops as the CUDA kernels read them. Called by csrc/ops/quantized_pointwise_cuda.cpp.
#pragma once

#include <ATen/core/Tensor.h>

#include "export.h"
#include "kernels/repeat.h"

namespace torchquant::ops {

struct RepeatedOperand {
  at::Tensor dense;
  kernels::Repeat repeat;
};

// x broadcast to the shape and memory order of `out`, which is dense: x itself where it repeats over neighbouring
// dimensions of `out` in runs of a multiple of `run` elements, as one value per channel does over the pixels. Any other
// broadcast is written out.
TQ_API RepeatedOperand repeated_operand(const at::Tensor& x, const at::Tensor& out, int64_t run);

}  // namespace torchquant::ops
