// Which (scale, zero_point) an element of a dense tensor uses, as index arithmetic shared by host and device. Called by
// the CUDA kernels and their CPU tests.
#pragma once

#include <cstdint>

#include "numerics/macros.h"

namespace torchquant::kernels {

// A dense tensor seen as [outer, axis_size, inner] in memory order, with the quantization axis in the middle.
//   per tensor   group_size = 0, one parameter
//   per channel  group_size = 0, axis_size parameters, parameter = a
//   grouped      parameters shaped [outer, axis_size / group_size, inner]
struct ParamLayout {
  int64_t outer = 1;
  int64_t axis_size = 1;
  int64_t inner = 1;
  int64_t group_size = 0;

  static ParamLayout per_tensor(int64_t numel) { return {1, 1, numel, 0}; }

  TQ_HOST_DEVICE int64_t numel() const { return outer * axis_size * inner; }
  TQ_HOST_DEVICE int64_t groups() const { return group_size > 0 ? axis_size / group_size : axis_size; }
  TQ_HOST_DEVICE int64_t params() const { return group_size > 0 ? outer * groups() * inner : axis_size; }

  // Parameter of element `e` in memory order.
  TQ_HOST_DEVICE int64_t param_of(int64_t e) const {
    const int64_t row = e / inner;  // o * axis_size + a
    const int64_t a = row % axis_size;
    if (group_size == 0) return a;
    const int64_t o = row / axis_size;
    return (o * groups() + a / group_size) * inner + e % inner;
  }

  // How many elements parameter p has.
  TQ_HOST_DEVICE int64_t elements_per_param() const { return group_size > 0 ? group_size : outer * inner; }

  // The j-th element (in memory order) of parameter p: the inverse of param_of, 0 <= j < elements_per_param().
  TQ_HOST_DEVICE int64_t element_of(int64_t p, int64_t j) const {
    if (group_size == 0) return ((j / inner) * axis_size + p) * inner + j % inner;
    const int64_t i = p % inner;
    const int64_t group = p / inner;  // o * groups + a / group_size
    const int64_t o = group / groups();
    const int64_t a = (group % groups()) * group_size + j;
    return (o * axis_size + a) * inner + i;
  }

  // Elements that lie next to one another and share a parameter, as a power of two up to `limit`.
  TQ_HOST_DEVICE int64_t uniform_run(int64_t limit) const {
    int64_t run = limit;
    const int64_t contiguous = group_size > 0 ? (inner == 1 ? group_size : 1) : inner;
    while (run > 1 && contiguous % run != 0) run /= 2;
    return run;
  }
};

// Parameters of consecutive elements, from any element on, without a division for each.
class ParamCursor {
 public:
  TQ_HOST_DEVICE ParamCursor(const ParamLayout& layout, int64_t element)
      : inner_(layout.inner),
        grouped_(layout.group_size > 0),
        period_(grouped_ ? layout.group_size : layout.axis_size),
        column_(element % inner_),
        row_(element / inner_ % period_),
        first_(grouped_ ? element / inner_ / period_ * inner_ : 0) {}

  TQ_HOST_DEVICE int64_t param() const { return grouped_ ? first_ + column_ : row_; }

  TQ_HOST_DEVICE void next() {
    if (++column_ < inner_) return;
    column_ = 0;
    if (++row_ < period_) return;
    row_ = 0;
    if (grouped_) first_ += inner_;
  }

 private:
  int64_t inner_;
  bool grouped_;
  int64_t period_;  // rows after which the parameters repeat, or the next group begins
  int64_t column_;
  int64_t row_;    // of the period
  int64_t first_;  // parameter of the group's first column
};

}  // namespace torchquant::kernels
