// Implements ops/granularity.h.
#include "ops/granularity.h"

#include <ATen/Dispatch.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <c10/core/WrapDimMinimal.h>

#include <numeric>

namespace torchquant::ops {

namespace {

// Dimensions of a dense tensor from the outermost to the innermost in memory.
c10::DimVector memory_order(const at::Tensor& dense) {
  c10::DimVector order(dense.dim());
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(), [&](int64_t a, int64_t b) { return dense.stride(a) > dense.stride(b); });
  return order;
}

bool same_layout(const at::Tensor& a, const at::Tensor& b) {
  if (a.strides() == b.strides()) return true;
  for (int64_t d = 0; d < a.dim(); ++d) {
    if (a.size(d) > 1 && a.stride(d) != b.stride(d)) return false;
  }
  return true;
}

}  // namespace

at::Tensor to_dense(const at::Tensor& x) {
  return x.is_non_overlapping_and_dense() ? x : at::empty_like(x).copy_(x);
}

at::Tensor with_layout_of(const at::Tensor& tensor, const at::Tensor& dense) {
  if (same_layout(tensor, dense)) return tensor;
  return at::empty_like(dense, tensor.options()).copy_(tensor);
}

ParamLayout param_layout(const at::Tensor& dense, const Granularity& granularity) {
  if (!granularity.axis) return ParamLayout::per_tensor(dense.numel());
  const int64_t axis = c10::maybe_wrap_dim(*granularity.axis, dense.dim());
  ParamLayout layout{1, dense.size(axis), 1, granularity.group_size.value_or(0)};
  // Only dimensions of size 1 can tie with the axis, and those multiply by 1 on either side.
  for (int64_t d = 0; d < dense.dim(); ++d) {
    if (d == axis) continue;
    (dense.stride(d) > dense.stride(axis) ? layout.outer : layout.inner) *= dense.size(d);
  }
  return layout;
}

at::Tensor params_in_memory_order(const at::Tensor& params, const at::Tensor& dense, const Granularity& granularity) {
  if (!granularity.group_size || dense.is_contiguous()) return params.to(at::kFloat).contiguous();
  return params.to(at::kFloat).permute(memory_order(dense)).contiguous();
}

at::Tensor params_from_memory_order(const at::Tensor& values, const at::Tensor& dense,
                                    const Granularity& granularity) {
  if (!granularity.group_size) return values;
  const c10::SymDimVector symbolic = params_shape(dense, granularity);
  c10::DimVector shape;
  for (const c10::SymInt& size : symbolic) shape.push_back(size.expect_int());
  if (dense.is_contiguous()) return values.view(shape);
  const c10::DimVector order = memory_order(dense);
  c10::DimVector permuted(shape.size());
  c10::DimVector inverse(shape.size());
  for (size_t i = 0; i < order.size(); ++i) {
    permuted[i] = shape[order[i]];
    inverse[order[i]] = static_cast<int64_t>(i);
  }
  return values.view(permuted).permute(inverse).contiguous();
}

c10::SymDimVector params_shape(const at::Tensor& x, const Granularity& granularity) {
  if (!granularity.axis) return {1};
  const int64_t axis = c10::maybe_wrap_dim(*granularity.axis, x.dim());
  if (!granularity.group_size) return {x.sym_size(axis)};
  c10::SymDimVector shape(x.sym_sizes().begin(), x.sym_sizes().end());
  shape[axis] = shape[axis] / *granularity.group_size;
  return shape;
}

kernels::FloatType float_type(const at::Tensor& tensor) {
  switch (tensor.scalar_type()) {
    case at::kBFloat16:
      return kernels::FloatType::kBFloat16;
    case at::kHalf:
      return kernels::FloatType::kFloat16;
    default:
      return kernels::FloatType::kFloat32;
  }
}

Pieces cut_into_pieces(const ParamLayout& layout) {
  // Runs shorter than this cost more in calls than rows cost in reading a parameter for each element.
  constexpr int64_t kShortRun = 32;
  constexpr int64_t kRowTarget = 512;
  const int64_t numel = layout.numel();
  if (layout.group_size > 0) {
    if (layout.inner == 1) return {false, numel, layout.group_size, layout.params(), 0, 0, layout};
    return {true, numel, layout.inner, layout.params(), layout.group_size, layout.params(), layout};
  }
  if (layout.axis_size == 1) return {false, numel, numel, 1, 0, 0, layout};
  // Rows of short runs are worth laying out once their slots are used a few times; several periods of the channels make
  // one row, so that three channels do not mean calls of three elements.
  if (layout.inner == 1 || (layout.inner < kShortRun && layout.outer >= 4)) {
    const int64_t period = layout.axis_size * layout.inner;
    const int64_t repeats =
        std::clamp<int64_t>(kRowTarget / std::max<int64_t>(period, 1), 1, std::max<int64_t>(layout.outer, 1));
    const int64_t length = period * repeats;
    const int64_t rows = std::max<int64_t>(at::divup(layout.outer, repeats), 1);
    return {true, numel, length, layout.axis_size, rows, length, layout};
  }
  return {false, numel, layout.inner, layout.axis_size, 0, 0, layout};
}

int64_t accumulator_copies(const Pieces& pieces) {
  // Groups on an inner axis have enough slot rows to share out; channels-last channels have a single one.
  constexpr int64_t kMaxCopies = 64;
  if (pieces.layout.group_size > 0) return 1;
  return std::clamp<int64_t>(pieces.numel / kReductionTask, 1, std::clamp<int64_t>(pieces.count(), 1, kMaxCopies));
}

namespace {

// A single zero point of any allowed dtype, read without running an op: per-tensor calls are too short to pay for one.
float read_zero_point(const at::Tensor& zero_point) {
  if (zero_point.scalar_type() == at::kFloat) return *zero_point.const_data_ptr<float>();
  return AT_DISPATCH_SWITCH(zero_point.scalar_type(), "zero_point",
                            AT_DISPATCH_CASE_INTEGRAL_TYPES([&] {
                              return static_cast<float>(*zero_point.const_data_ptr<scalar_t>());
                            }));
}

}  // namespace

CpuQParams::CpuQParams(const char* op, const at::Tensor& dense, const at::Tensor& scale, const at::Tensor& zero_point,
                       const Granularity& granularity, numerics::QRange range)
    : range_(range), pieces_(cut_into_pieces(param_layout(dense, granularity))) {
  const int64_t count = scale.numel();
  if (count == 1) {
    single_scale_ = *scale.const_data_ptr<float>();
    single_zero_point_ = read_zero_point(zero_point);
    scale_ = &single_scale_;
    zero_point_ = &single_zero_point_;
  } else {
    scale_tensor_ = params_in_memory_order(scale, dense, granularity);
    zero_point_tensor_ = params_in_memory_order(zero_point.reshape(scale.sizes()), dense, granularity);
    scale_ = scale_tensor_.const_data_ptr<float>();
    zero_point_ = zero_point_tensor_.const_data_ptr<float>();
  }
  check_scale_values(op, scale_, count);
  check_zero_point_values(op, zero_point_, count);
  if (pieces_.rows) fill_arrays();
}

void CpuQParams::fill_arrays() {
  const int64_t slots = pieces_.slots;
  arrays_ = std::make_unique_for_overwrite<float[]>(3 * slots);
  for (int64_t slot = 0; slot < slots; ++slot) {
    const numerics::QParams p = param(pieces_.param_of_slot(slot));
    arrays_[slot] = p.scale;
    arrays_[slots + slot] = p.inv_scale;
    arrays_[2 * slots + slot] = p.zero_point;
  }
}

}  // namespace torchquant::ops
