// Argument checks shared by the ops of every device. Each raises one c10::Error: "<op>: <argument> must ..., got ...".
// They read shapes, dtypes and devices only (symbolic sizes included), so Meta kernels call them too; values of scales are
// checked separately, on CPU.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <optional>
#include <string>

#include "export.h"
#include "numerics/affine.h"

namespace torchquant::ops {

// Which parameter an element uses, as the `axis` and `group_size` arguments say.
struct Granularity {
  std::optional<int64_t> axis;
  std::optional<int64_t> group_size;
};

// "float32", "int8", ...
TQ_API std::string dtype_name(at::ScalarType dtype);

TQ_API void check_float(const char* op, const char* argument, const at::Tensor& tensor);
TQ_API void check_dtype(const char* op, const char* argument, const at::Tensor& tensor, at::ScalarType dtype);
TQ_API void check_same_device(const char* op, const char* argument, const at::Tensor& tensor, const at::Tensor& x);

// quant_min < quant_max, 2 to 8 bits, inside int8 or uint8.
TQ_API void check_range(const char* op, int64_t quant_min, int64_t quant_max);
// As above, and the range fits `dtype`, which must be int8 or uint8.
TQ_API void check_range_of_dtype(const char* op, at::ScalarType dtype, int64_t quant_min, int64_t quant_max);

// `axis` names a dimension of x and group_size divides it.
TQ_API void check_granularity(const char* op, const at::Tensor& x, const Granularity& granularity);
// dtype, device, shape and count of scale and zero_point, after check_granularity.
TQ_API void check_qparams(const char* op, const at::Tensor& x, const at::Tensor& scale, const at::Tensor& zero_point,
                          const Granularity& granularity);

// CPU only: every scale is finite and > 0, every zero point finite; the message names the channel (index of parameter).
TQ_API void check_scale_values(const char* op, const float* scale, int64_t count);
TQ_API void check_zero_point_values(const char* op, const float* zero_point, int64_t count);

inline numerics::QRange to_range(int64_t quant_min, int64_t quant_max) {
  return {static_cast<float>(quant_min), static_cast<float>(quant_max)};
}

}  // namespace torchquant::ops
