// Implements ops/checks.h.
#include "ops/checks.h"

#include <c10/core/ScalarType.h>
#include <c10/core/SymBool.h>
#include <c10/core/WrapDimMinimal.h>

#include <cmath>

namespace torchquant::ops {

std::string dtype_name(at::ScalarType dtype) { return std::string(c10::getDtypeNames(dtype).first); }

void check_float(const char* op, const char* argument, const at::Tensor& tensor) {
  const at::ScalarType dtype = tensor.scalar_type();
  TORCH_CHECK(dtype == at::kFloat || dtype == at::kBFloat16 || dtype == at::kHalf, op, ": ", argument,
              " must be float32, bfloat16 or float16, got ", dtype_name(dtype));
}

void check_dtype(const char* op, const char* argument, const at::Tensor& tensor, at::ScalarType dtype) {
  TORCH_CHECK(tensor.scalar_type() == dtype, op, ": ", argument, " must be ", dtype_name(dtype), ", got ",
              dtype_name(tensor.scalar_type()));
}

void check_same_device(const char* op, const char* argument, const at::Tensor& tensor, const at::Tensor& x) {
  TORCH_CHECK(tensor.device() == x.device(), op, ": ", argument, " must be on the device of the input, ", x.device(),
              ", got ", tensor.device());
}

void check_range(const char* op, int64_t quant_min, int64_t quant_max) {
  TORCH_CHECK(quant_min < quant_max, op, ": quant_min must be less than quant_max, got quant_min ", quant_min,
              " and quant_max ", quant_max);
  const bool int8 = quant_min >= -128 && quant_max <= 127;
  const bool uint8 = quant_min >= 0 && quant_max <= 255;
  TORCH_CHECK(int8 || uint8, op, ": [quant_min, quant_max] must lie inside int8 [-128, 127] or uint8 [0, 255], got [",
              quant_min, ", ", quant_max, "]");
  TORCH_CHECK(quant_max - quant_min >= 2, op, ": [quant_min, quant_max] must span 2 to 8 bits (at least 3 codes), got [",
              quant_min, ", ", quant_max, "]");
}

void check_range_of_dtype(const char* op, at::ScalarType dtype, int64_t quant_min, int64_t quant_max) {
  TORCH_CHECK(dtype == at::kChar || dtype == at::kByte, op, ": dtype must be int8 or uint8, got ", dtype_name(dtype));
  check_range(op, quant_min, quant_max);
  const int64_t lowest = dtype == at::kChar ? -128 : 0;
  const int64_t highest = dtype == at::kChar ? 127 : 255;
  TORCH_CHECK(quant_min >= lowest && quant_max <= highest, op, ": [quant_min, quant_max] must lie inside dtype ",
              dtype_name(dtype), " [", lowest, ", ", highest, "], got [", quant_min, ", ", quant_max, "]");
}

void check_granularity(const char* op, const at::Tensor& x, const Granularity& granularity) {
  const auto& [axis, group_size] = granularity;
  TORCH_CHECK(axis || !group_size, op, ": group_size needs an axis to divide, got group_size ", group_size.value_or(0),
              " and axis None");
  if (!axis) return;
  const int64_t dim = x.dim();
  TORCH_CHECK(dim > 0, op, ": axis must be None for a tensor without dimensions, got axis ", *axis);
  TORCH_CHECK(*axis >= -dim && *axis < dim, op, ": axis must be in [", -dim, ", ", dim - 1, "] for an input of ", dim,
              " dimensions, got ", *axis);
  if (!group_size) return;
  TORCH_CHECK(*group_size > 0, op, ": group_size must be positive, got ", *group_size);
  const c10::SymInt size = x.sym_size(*axis);
  TORCH_SYM_CHECK((size % *group_size).sym_eq(0), op, ": group_size must divide the size of axis ", *axis, ", which is ",
                  size, ", got ", *group_size);
}

namespace {

bool is_zero_point_dtype(at::ScalarType dtype) {
  return dtype == at::kFloat || at::isIntegralType(dtype, /*includeBool=*/false);
}

void check_grouped_shape(const char* op, const at::Tensor& x, const at::Tensor& scale, const Granularity& granularity) {
  const int64_t axis = c10::maybe_wrap_dim(*granularity.axis, x.dim());
  c10::SymDimVector expected(x.sym_sizes().begin(), x.sym_sizes().end());
  expected[axis] = expected[axis] / *granularity.group_size;
  TORCH_CHECK(scale.dim() == x.dim(), op, ": scale must have the shape of the input with axis ", axis,
              " divided by group_size ", *granularity.group_size, ", which is ", c10::SymIntArrayRef(expected),
              ", got ", scale.sym_sizes());
  for (int64_t d = 0; d < x.dim(); ++d) {
    TORCH_SYM_CHECK(scale.sym_size(d).sym_eq(expected[d]), op, ": scale must have the shape of the input with axis ",
                    axis, " divided by group_size ", *granularity.group_size, ", which is ",
                    c10::SymIntArrayRef(expected), ", got ", scale.sym_sizes());
  }
}

}  // namespace

void check_qparams(const char* op, const at::Tensor& x, const at::Tensor& scale, const at::Tensor& zero_point,
                   const Granularity& granularity) {
  check_dtype(op, "scale", scale, at::kFloat);
  TORCH_CHECK(is_zero_point_dtype(zero_point.scalar_type()), op, ": zero_point must be float32 or an integer type, got ",
              dtype_name(zero_point.scalar_type()));
  check_same_device(op, "scale", scale, x);
  check_same_device(op, "zero_point", zero_point, x);
  if (granularity.group_size) {
    check_grouped_shape(op, x, scale, granularity);
  } else if (granularity.axis) {
    const c10::SymInt channels = x.sym_size(*granularity.axis);
    TORCH_SYM_CHECK(scale.sym_numel().sym_eq(channels), op, ": scale must have one element for each of the ", channels,
                    " channels along axis ", *granularity.axis, ", got shape ", scale.sym_sizes());
  } else {
    TORCH_SYM_CHECK(scale.sym_numel().sym_eq(1), op, ": scale must have 1 element when axis is None, got shape ",
                    scale.sym_sizes());
  }
  TORCH_SYM_CHECK(zero_point.sym_numel().sym_eq(scale.sym_numel()), op,
                  ": zero_point must have as many elements as scale, ", scale.sym_numel(), ", got shape ",
                  zero_point.sym_sizes());
}

namespace {

// Vectorizes, unlike a loop that stops at the first bad value; the caller looks for that one only if there is any.
template <typename IsGood>
int64_t first_bad(const float* values, int64_t count, const IsGood& is_good) {
  bool good = true;
  for (int64_t i = 0; i < count; ++i) good &= is_good(values[i]);
  if (good) return -1;
  int64_t i = 0;
  while (is_good(values[i])) ++i;
  return i;
}

}  // namespace

void check_scale_values(const char* op, const float* scale, int64_t count) {
  const int64_t bad = first_bad(scale, count, [](float s) { return numerics::valid_scale(s); });
  TORCH_CHECK(bad < 0, op, ": scale must be finite and greater than 0 (above 2^-128, so that 1/scale is finite), got ",
              scale[bad], " at channel ", bad);
}

void check_zero_point_values(const char* op, const float* zero_point, int64_t count) {
  const int64_t bad = first_bad(zero_point, count, [](float z) { return std::isfinite(z); });
  TORCH_CHECK(bad < 0, op, ": zero_point must be finite, got ", zero_point[bad], " at channel ", bad);
}

}  // namespace torchquant::ops
