// Where the pixels of an image lie. Used by every kernel that reads or writes images of codes.
#pragma once

#include <cstdint>

#include "numerics/macros.h"

namespace torchquant::kernels {

// A batch of NHWC images as a view into a larger buffer: padded, or a slice of the channels of a concatenation. Pitches
// are in elements, from one pixel, row or image to the next; the channels of a pixel are adjacent. A pitch of 0 repeats
// an input along that axis.
struct ImageLayout {
  int64_t height;
  int64_t width;
  int64_t pixel_pitch;
  int64_t row_pitch;
  int64_t image_pitch;

  TQ_HOST_DEVICE int64_t offset(int64_t image, int64_t row, int64_t column) const {
    return image * image_pitch + row * row_pitch + column * pixel_pitch;
  }
};

// Images that fill their buffer.
TQ_HOST_DEVICE constexpr ImageLayout dense_image(int64_t height, int64_t width, int64_t channels) {
  return {height, width, channels, width * channels, height * width * channels};
}

// Pixels around each image, inside its buffer.
struct ImageBorder {
  int64_t top = 0;
  int64_t bottom = 0;
  int64_t left = 0;
  int64_t right = 0;
};

// The pixel that comes at position `index` of a walk over batch, height and width.
struct PixelIndex {
  int64_t image;
  int64_t row;
  int64_t column;
};
TQ_HOST_DEVICE PixelIndex pixel_index(const ImageLayout& layout, int64_t index) {
  const int64_t row = index / layout.width;
  return {row / layout.height, row % layout.height, index % layout.width};
}

// body(first, count) for the parts of rows that positions [begin, end) of that walk consist of.
template <typename Body>
TQ_HOST_DEVICE void for_each_row_part(const ImageLayout& layout, int64_t begin, int64_t end, Body&& body) {
  while (begin < end) {
    const PixelIndex first = pixel_index(layout, begin);
    const int64_t rest = layout.width - first.column;
    const int64_t count = rest < end - begin ? rest : end - begin;
    body(first, count);
    begin += count;
  }
}

}  // namespace torchquant::kernels
