// The axes of an image as rules: which inputs each output position pools or interpolates. The CPU kernels read lists of
// them (kernels/quantized_pool.h, kernels/quantized_image.h); on a GPU each thread asks for its own.
#pragma once

#include <cstdint>

#include "kernels/quantized_pool.h"
#include "numerics/macros.h"
#include "numerics/resize.h"

namespace torchquant::kernels {

// The windows of an axis of `in_size` inputs. A kernel of 0 stands for adaptive pooling: window o covers [floor(o * in
// / out), ceil((o + 1) * in / out)), as in PyTorch. Other windows are clipped to the input; they count what they cover
// of it, or with include_pad, of the padded input: what lies beyond the padding (ceil_mode) never counts.
struct PoolAxis {
  int64_t in_size;
  int64_t out_size;
  int64_t kernel = 0;
  int64_t stride = 1;
  int64_t padding = 0;
  bool include_pad = false;

  TQ_HOST_DEVICE PoolWindow window(int64_t o) const {
    if (kernel == 0) {
      const int64_t begin = o * in_size / out_size;
      const int64_t end = ((o + 1) * in_size + out_size - 1) / out_size;
      return {begin, end, end - begin};
    }
    const int64_t start = o * stride - padding;
    const int64_t end = start + kernel < in_size + padding ? start + kernel : in_size + padding;
    const int64_t clipped_start = start > 0 ? start : 0;
    const int64_t clipped_end = end < in_size ? end : in_size;
    return {clipped_start, clipped_end, include_pad ? end - start : clipped_end - clipped_start};
  }
};

// An axis of a linear resize.
struct ResizeAxis {
  int64_t in_size;
  int64_t out_size;
  float ratio;  // numerics::resize_ratio()
  bool align_corners;

  TQ_HOST_DEVICE numerics::LinearTap tap(int64_t out) const {
    return numerics::linear_tap(in_size, out_size, out, ratio, align_corners);
  }
};

}  // namespace torchquant::kernels
