// The tables of torchquant::quantized_lookup, computed in fp64 and stored in the model. Called by the converter.
#pragma once

#include <ATen/core/Tensor.h>

#include <functional>
#include <string_view>

#include "export.h"

namespace torchquant::ops {

struct LookupInput {
  at::ScalarType dtype;  // uint8 or int8: the codes that index the table
  float scale;
  int64_t zero_point;
};

struct LookupOutput {
  at::ScalarType dtype;  // uint8 or int8; a floating dtype stores f(x) itself and ignores the rest
  float scale = 1.0f;
  int64_t zero_point = 0;
  int64_t quant_min = 0;
  int64_t quant_max = 255;
};

// The op's `table_min` argument: the code that entry 0 stands for.
TQ_API int64_t lookup_table_min(at::ScalarType input_dtype);

// Entry of code q: clamp(rhe(f((q - z_x) * s_x) / s_y) + z_y, quant_min, quant_max), in fp64; NaN gives z_y.
TQ_API at::Tensor build_lookup_table(const std::function<double(double)>& f, const LookupInput& input,
                                     const LookupOutput& output);

// f by name: every activation of the fused ops, "none" for a plain requantization. Clamps take their bounds in real
// units: relu and relu6 none, hardtanh {lo, hi}.
TQ_API at::Tensor build_lookup_table(std::string_view activation, at::ArrayRef<double> activation_args,
                                     const LookupInput& input, const LookupOutput& output);

}  // namespace torchquant::ops
