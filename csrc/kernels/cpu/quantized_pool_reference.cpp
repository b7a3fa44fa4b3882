// Reference max and average pooling. Reached through kernels/quantized_kernels.h.
#include "kernels/cpu/quantized_reference.h"
#include "kernels/cpu/quantized_tile_reference.h"

namespace torchquant::kernels::reference {
namespace {

template <typename T>
void max_pool_pixel(const MaxPoolArgs& args, PixelIndex pixel, T* out) {
  const MaxPoolAxis& h = args.height;
  const MaxPoolAxis& w = args.width;
  bool first = true;
  for (int64_t ky = 0; ky < h.kernel; ++ky) {
    const int64_t y = pixel.row * h.stride - h.padding + ky * h.dilation;
    for (int64_t kx = 0; kx < w.kernel; ++kx) {
      const int64_t x = pixel.column * w.stride - w.padding + kx * w.dilation;
      const bool inside = y >= 0 && y < args.x_layout.height && x >= 0 && x < args.x_layout.width;
      if (!inside) {
        const T pad = static_cast<T>(args.pad_value);
        for (int64_t c = 0; c < args.channels; ++c) out[c] = first ? pad : std::max(out[c], pad);
      } else {
        const T* codes = static_cast<const T*>(args.x) + args.x_layout.offset(pixel.image, y, x);
        for (int64_t c = 0; c < args.channels; ++c) out[c] = first ? codes[c] : std::max(out[c], codes[c]);
      }
      first = false;
    }
  }
}

// sums[c] = sum of (q - zero_point) over the window
template <typename T>
void sum_window(const AvgPoolArgs& args, int64_t image, PoolWindow row, PoolWindow column, int32_t* sums) {
  std::fill_n(sums, args.channels, 0);
  for (int64_t y = row.begin; y < row.end; ++y) {
    for (int64_t x = column.begin; x < column.end; ++x) {
      const T* codes = static_cast<const T*>(args.x) + args.x_layout.offset(image, y, x);
      for (int64_t c = 0; c < args.channels; ++c) sums[c] += codes[c] - args.x_zero_point;
    }
  }
}

template <typename T>
void avg_pool_typed(const AvgPoolArgs& args, IndexRange pixels) {
  std::vector<int32_t> sums(args.channels);
  std::vector<float> v(args.channels);
  for (int64_t p = pixels.begin; p < pixels.end; ++p) {
    const PixelIndex pixel = pixel_index(args.out_layout, p);
    const PoolWindow row = args.rows[pixel.row];
    const PoolWindow column = args.columns[pixel.column];
    sum_window<T>(args, pixel.image, row, column, sums.data());
    const int64_t count = args.divisor != 0 ? args.divisor : row.count * column.count;
    const float factor = args.multiplier / static_cast<float>(count);
    for (int64_t c = 0; c < args.channels; ++c) v[c] = static_cast<float>(sums[c]) * factor;
    store_values(v.data(), args.channels, args.output, args.out,
                 args.out_layout.offset(pixel.image, pixel.row, pixel.column));
  }
}

}  // namespace

void max_pool(const MaxPoolArgs& args, IndexRange pixels) {
  with_code_type(args.type, [&](auto* code) {
    using T = std::remove_cv_t<std::remove_pointer_t<decltype(code)>>;
    for (int64_t p = pixels.begin; p < pixels.end; ++p) {
      const PixelIndex pixel = pixel_index(args.out_layout, p);
      max_pool_pixel<T>(args, pixel,
                        static_cast<T*>(args.out) + args.out_layout.offset(pixel.image, pixel.row, pixel.column));
    }
  });
}

void avg_pool(const AvgPoolArgs& args, IndexRange pixels) {
  with_code_type(args.x_type, [&](auto* code) {
    avg_pool_typed<std::remove_cv_t<std::remove_pointer_t<decltype(code)>>>(args, pixels);
  });
}

}  // namespace torchquant::kernels::reference
