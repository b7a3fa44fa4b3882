// A batch of NHWC codes inside a larger buffer, filled with a pattern that shows stray writes. Used by C++ tests of
// kernels.
#pragma once

#include <cstdint>
#include <utility>
#include <vector>

#include "kernels/quantized_image.h"
#include "support/rng.h"

namespace torchquant::test {

inline constexpr uint8_t kUntouched = 0xA5;

class PitchedImage {
 public:
  PitchedImage(int64_t batch, int64_t height, int64_t width, int64_t channels, int64_t pixel_pitch,
               kernels::ImageBorder border)
      : batch_(batch), channels_(channels), border_(border) {
    const int64_t row_pitch = (width + border.left + border.right) * pixel_pitch + 3;
    const int64_t image_pitch = (height + border.top + border.bottom) * row_pitch + 7;
    layout_ = {height, width, pixel_pitch, row_pitch, image_pitch};
    // The guard behind the last image is longer than a vector.
    bytes_.assign(batch * image_pitch + 64, kUntouched);
  }

  uint8_t* origin() { return bytes_.data() + border_.top * layout_.row_pitch + border_.left * layout_.pixel_pitch; }
  const kernels::ImageLayout& layout() const { return layout_; }
  const kernels::ImageBorder& border() const { return border_; }
  const std::vector<uint8_t>& bytes() const { return bytes_; }
  int64_t batch() const { return batch_; }

  uint8_t& at(int64_t image, int64_t row, int64_t column, int64_t channel) {
    return origin()[layout_.offset(image, row, column) + channel];
  }

  // fn(image, row, column, channel, code) for every code inside the border.
  template <typename Fn>
  void for_each(Fn&& fn) {
    walk({0, 0, 0, 0}, fn);
  }
  // The same with the border, where rows and columns are negative or beyond the image.
  template <typename Fn>
  void for_each_stored(Fn&& fn) {
    walk(border_, fn);
  }

  void randomize(Random& random) {
    for_each([&](int64_t, int64_t, int64_t, int64_t, uint8_t& code) {
      code = static_cast<uint8_t>(random.integer(0, 255));
    });
  }

 private:
  template <typename Fn>
  void walk(const kernels::ImageBorder& border, Fn&& fn) {
    for (int64_t image = 0; image < batch_; ++image) {
      for (int64_t row = -border.top; row < layout_.height + border.bottom; ++row) {
        for (int64_t column = -border.left; column < layout_.width + border.right; ++column) {
          for (int64_t channel = 0; channel < channels_; ++channel) {
            fn(image, row, column, channel, at(image, row, column, channel));
          }
        }
      }
    }
  }

  int64_t batch_;
  int64_t channels_;
  kernels::ImageBorder border_;
  kernels::ImageLayout layout_;
  std::vector<uint8_t> bytes_;
};

}  // namespace torchquant::test
