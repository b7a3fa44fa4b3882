// Reference max and average pooling. Reached through kernels/quantized_kernels.h.
#include "kernels/cpu/quantized_reference.h"
#include "kernels/cpu/quantized_tile_reference.h"

namespace torchquant::kernels::reference {
namespace {

template <typename T>
void max_pool_pixel(const MaxPoolArgs& args, int64_t image, int64_t out_y, int64_t out_x, T* out) {
  const MaxPoolAxis& h = args.height;
  const MaxPoolAxis& w = args.width;
  bool first = true;
  for (int64_t ky = 0; ky < h.kernel; ++ky) {
    const int64_t y = out_y * h.stride - h.padding + ky * h.dilation;
    for (int64_t kx = 0; kx < w.kernel; ++kx) {
      const int64_t x = out_x * w.stride - w.padding + kx * w.dilation;
      const bool inside = y >= 0 && y < h.in_size && x >= 0 && x < w.in_size;
      if (!inside) {
        const T pad = static_cast<T>(args.pad_value);
        for (int64_t c = 0; c < args.channels; ++c) out[c] = first ? pad : std::max(out[c], pad);
      } else {
        const T* codes = static_cast<const T*>(args.x) + ((image * h.in_size + y) * w.in_size + x) * args.channels;
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
      const T* codes =
          static_cast<const T*>(args.x) + ((image * args.in_height + y) * args.in_width + x) * args.channels;
      for (int64_t c = 0; c < args.channels; ++c) sums[c] += codes[c] - args.x_zero_point;
    }
  }
}

template <typename T>
void avg_pool_typed(const AvgPoolArgs& args, IndexRange pixels) {
  std::vector<int32_t> sums(args.channels);
  std::vector<float> v(args.channels);
  for (int64_t p = pixels.begin; p < pixels.end; ++p) {
    const int64_t out_row = p / args.out_width;
    const PoolWindow row = args.rows[out_row % args.out_height];
    const PoolWindow column = args.columns[p % args.out_width];
    sum_window<T>(args, out_row / args.out_height, row, column, sums.data());
    const int64_t count = args.divisor != 0 ? args.divisor : row.count * column.count;
    const float factor = args.multiplier / static_cast<float>(count);
    for (int64_t c = 0; c < args.channels; ++c) v[c] = static_cast<float>(sums[c]) * factor;
    store_values(v.data(), args.channels, args.output, args.out, p * args.channels);
  }
}

}  // namespace

void max_pool(const MaxPoolArgs& args, IndexRange pixels) {
  with_code_type(args.type, [&](auto* code) {
    using T = std::remove_cv_t<std::remove_pointer_t<decltype(code)>>;
    for (int64_t p = pixels.begin; p < pixels.end; ++p) {
      const int64_t row = p / args.width.out_size;
      max_pool_pixel<T>(args, row / args.height.out_size, row % args.height.out_size, p % args.width.out_size,
                        static_cast<T*>(args.out) + p * args.channels);
    }
  });
}

void avg_pool(const AvgPoolArgs& args, IndexRange pixels) {
  with_code_type(args.x_type, [&](auto* code) {
    avg_pool_typed<std::remove_cv_t<std::remove_pointer_t<decltype(code)>>>(args, pixels);
  });
}

}  // namespace torchquant::kernels::reference
