// Integer pooling over NHWC codes. Called by csrc/ops/quantized_*_pool.cpp; 1-d pooling is pooling of height 1.
#pragma once

#include <cstdint>

#include "kernels/image.h"
#include "kernels/quantized_types.h"

namespace torchquant::kernels {

struct MaxPoolAxis {
  int64_t kernel;
  int64_t stride;
  int64_t padding;
  int64_t dilation;
};

// A window that reaches into the padding sees `pad_value` there.
struct MaxPoolArgs {
  int64_t channels;
  MaxPoolAxis height;
  MaxPoolAxis width;
  const void* x;
  ImageLayout x_layout;
  ElementType type;
  int32_t pad_value;
  void* out;
  ImageLayout out_layout;
};

// One output position along one axis: the inputs [begin, end) and what it counts for in the divisor.
struct PoolWindow {
  int64_t begin;
  int64_t end;
  int64_t count;
};

// v = float(sum(q - x_zero_point)) * (multiplier / float(count)), count = divisor, or, where that is 0, the product of
// the windows' counts. Windows serve average and adaptive pooling alike: one per output row, one per output column.
struct AvgPoolArgs {
  int64_t channels;
  const PoolWindow* rows;
  const PoolWindow* columns;
  int64_t divisor;
  const void* x;
  ImageLayout x_layout;
  ElementType x_type;
  int32_t x_zero_point;
  float multiplier;
  OutputSpec output;
  void* out;
  ImageLayout out_layout;
};

}  // namespace torchquant::kernels
