// Walks images as runs of elements that are adjacent in every tensor. Used by the elementwise kernels of every
// instruction set.
#pragma once

#include <cstdint>

#include "kernels/quantized_pointwise.h"

namespace torchquant::kernels {

// Where a run begins in each of its tensors.
struct RunOffsets {
  int64_t a;
  int64_t b;
  int64_t out;
};

// run(offsets, length) for all channels of the pixels of rows [rows.begin, rows.end): whole rows where no tensor leaves
// gaps between its pixels.
template <typename Run>
TQ_HOST_DEVICE void for_each_run(const PointwiseImages& images, IndexRange rows, Run&& run) {
  const int64_t channels = images.channels;
  const bool dense =
      images.a.pixel_pitch == channels && images.b.pixel_pitch == channels && images.out.pixel_pitch == channels;
  const int64_t pixels = dense ? images.out.width : 1;  // in one run
  for (int64_t i = rows.begin; i < rows.end; ++i) {
    const int64_t image = i / images.out.height;
    const int64_t row = i % images.out.height;
    for (int64_t column = 0; column < images.out.width; column += pixels) {
      run(RunOffsets{images.a.offset(image, row, column), images.b.offset(image, row, column),
                     images.out.offset(image, row, column)},
          pixels * channels);
    }
  }
}

}  // namespace torchquant::kernels
