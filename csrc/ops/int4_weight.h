// 4-bit weights as tensors: two codes a byte along the flattened rest of each row, low nibble first, stored as
// code - quant_min. Called by the converter, which writes them; the ops unpack them (quantized_common.h).
#pragma once

#include <ATen/core/Tensor.h>

#include "export.h"

namespace torchquant::ops {

// int8 codes [rows, ...] in [quant_min, quant_min + 15] -> uint8 [rows, ceil(rest / 2)]
TQ_API at::Tensor pack_int4(const at::Tensor& codes, int64_t quant_min);

// The inverse, for a weight of the given shape.
TQ_API at::Tensor unpack_int4(const at::Tensor& packed, at::IntArrayRef shape, int64_t quant_min);

}  // namespace torchquant::ops
