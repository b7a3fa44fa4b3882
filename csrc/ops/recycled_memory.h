// Memory for the outputs of training ops, kept from step to step. Called by the CPU kernels that observe and
// fake-quantize.
#pragma once

#include <ATen/core/Tensor.h>

#include "export.h"

namespace torchquant::ops {

// at::empty_like of a dense CPU tensor, where it can in memory that an earlier such tensor gave back. A training step
// makes the same large tensors again and again, and the system's allocator hands them back to the kernel in between:
// each step then pays for fresh pages. What is held, in use or not, is never more
// than what was in use at once.
TQ_API at::Tensor empty_like_recycled(const at::Tensor& dense);

}  // namespace torchquant::ops
