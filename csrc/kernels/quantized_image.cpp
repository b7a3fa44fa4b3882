// Fills the border of pitched images; see quantized_image.h.
#include "kernels/quantized_image.h"

#include <cstring>

namespace torchquant::kernels {
namespace {

struct BorderFill {
  const ImageLayout& layout;
  int64_t channels;
  int code;

  void pixels(uint8_t* first, int64_t count) const {
    if (layout.pixel_pitch == channels) {
      memset(first, code, static_cast<size_t>(count * channels));
      return;
    }
    for (int64_t i = 0; i < count; ++i) memset(first + i * layout.pixel_pitch, code, static_cast<size_t>(channels));
  }
};

}  // namespace

void fill_border(void* data, const ImageLayout& layout, int64_t channels, const ImageBorder& border, int32_t code,
                 IndexRange images) {
  const BorderFill fill{layout, channels, code & 0xff};
  const int64_t full_width = border.left + layout.width + border.right;
  for (int64_t image = images.begin; image < images.end; ++image) {
    uint8_t* origin = static_cast<uint8_t*>(data) + image * layout.image_pitch;
    for (int64_t row = -border.top; row < layout.height + border.bottom; ++row) {
      uint8_t* start = origin + row * layout.row_pitch;
      uint8_t* left = start - border.left * layout.pixel_pitch;
      if (row < 0 || row >= layout.height) {
        fill.pixels(left, full_width);
      } else {
        fill.pixels(left, border.left);
        fill.pixels(start + layout.width * layout.pixel_pitch, border.right);
      }
    }
  }
}

}  // namespace torchquant::kernels
