// Max and average pooling over vectors, written once for every vector instruction set: V as in codes_vector.h, B the
// Bytes of bytes_avx2.h or bytes_avx512.h. Included by quantized_avx2.cpp and quantized_avx512.cpp.
#pragma once

#include "kernels/cpu/codes_vector.h"
#include "kernels/cpu/quantized_reference.h"

namespace torchquant::kernels {

template <typename V, typename B>
struct QuantizedPoolVector {
  using Float = typename V::Float;
  using Int = typename V::Int;
  using Vector = typename B::Vector;

  // ---- max ----

  // The taps of a window that lie inside the image: `count` of them from `start`, `step` inputs apart.
  struct Taps {
    int64_t start;
    int64_t count;
    int64_t step;
    bool clipped;
  };
  TQ_HOST_DEVICE static Taps taps(const MaxPoolAxis& axis, int64_t out, int64_t in_size) {
    const int64_t start = out * axis.stride - axis.padding;
    const bool inside = start >= 0 && start + (axis.kernel - 1) * axis.dilation < in_size;
    if (inside) return {start, axis.kernel, axis.dilation, false};  // nearly all: spares them the divisions
    const int64_t first = start < 0 ? (-start + axis.dilation - 1) / axis.dilation : 0;
    const int64_t fitting = in_size > start ? (in_size - start + axis.dilation - 1) / axis.dilation : 0;
    const int64_t end = fitting < axis.kernel ? fitting : axis.kernel;
    const int64_t count = end > first ? end - first : 0;
    return {start + first * axis.dilation, count, axis.dilation, count < axis.kernel};
  }

  // A window as a block of pixels, distances in bytes.
  struct Block {
    const uint8_t* first;
    int64_t rows, row_step;
    int64_t columns, column_step;
  };

  // kRows x kColumns taps, known when compiled, or those of the block where they are 0.
  template <int kRows, int kColumns, typename T, typename Load>
  TQ_HOST_DEVICE static Vector largest(const Block& block, int64_t channel, Vector floor, Load load) {
    const int64_t rows = kRows > 0 ? kRows : block.rows;
    const int64_t columns = kColumns > 0 ? kColumns : block.columns;
    const uint8_t* row = block.first + channel;
#pragma GCC unroll 3
    for (int64_t y = 0; y < rows; ++y, row += block.row_step) {
#pragma GCC unroll 3
      for (int64_t x = 0; x < columns; ++x) floor = B::max(floor, load(row + x * block.column_step), T{});
    }
    return floor;
  }

  template <int kRows, int kColumns, typename T>
  TQ_HOST_DEVICE static void max_channels(const Block& block, int64_t channels, Vector floor, uint8_t* out) {
    int64_t c = 0;
    for (; c + B::kWidth <= channels; c += B::kWidth) {
      B::store(out + c, largest<kRows, kColumns, T>(block, c, floor, [](const uint8_t* p) { return B::load(p); }));
    }
    if (c < channels) {
      const int64_t rest = channels - c;
      const auto load = [=](const uint8_t* p) { return B::load(p, rest); };
      B::store(out + c, largest<kRows, kColumns, T>(block, c, floor, load), rest);
    }
  }

  template <typename T>
  TQ_HOST_DEVICE static void max_pixel(const Block& block, int64_t channels, Vector floor, uint8_t* out) {
    if (block.rows == 3 && block.columns == 3) {
      max_channels<3, 3, T>(block, channels, floor, out);
    } else if (block.rows == 2 && block.columns == 2) {
      max_channels<2, 2, T>(block, channels, floor, out);
    } else {
      max_channels<0, 0, T>(block, channels, floor, out);
    }
  }

  template <typename T>
  TQ_HOST_DEVICE static void max_pixels(const MaxPoolArgs& args, IndexRange pixels) {
    const ImageLayout& in = args.x_layout;
    const uint8_t smallest = static_cast<T>(-1) < 0 ? 0x80 : 0;
    const Vector lowest = B::set(smallest);
    const Vector padding = B::set(static_cast<uint8_t>(args.pad_value));
    for_each_row_part(args.out_layout, pixels.begin, pixels.end, [&](PixelIndex pixel, int64_t count) {
      const Taps y = taps(args.height, pixel.row, in.height);
      const uint8_t* rows = static_cast<const uint8_t*>(args.x) + in.offset(pixel.image, y.start, 0);
      uint8_t* out = static_cast<uint8_t*>(args.out) + args.out_layout.offset(pixel.image, pixel.row, pixel.column);
      for (int64_t i = 0; i < count; ++i, out += args.out_layout.pixel_pitch) {
        const Taps x = taps(args.width, pixel.column + i, in.width);
        const Block block{rows + x.start * in.pixel_pitch, y.count, y.step * in.row_pitch, x.count,
                          x.step * in.pixel_pitch};
        max_pixel<T>(block, args.channels, y.clipped || x.clipped ? padding : lowest, out);
      }
    });
  }

  TQ_KERNEL static void max_pool(const MaxPoolArgs& args, IndexRange pixels) {
    if (args.type == ElementType::kInt8) {
      max_pixels<int8_t>(args, pixels);
    } else {
      max_pixels<uint8_t>(args, pixels);
    }
  }

  // ---- average ----

  // Sums of one channel vector over a window.
  template <typename Lanes>
  TQ_HOST_DEVICE static Int sum(const CentredCodes<V>& codes, const Block& block, int64_t channel, Lanes lanes) {
    Int total = V::set_int(0);
    const uint8_t* row = block.first + channel;
    for (int64_t y = 0; y < block.rows; ++y, row += block.row_step) {
      for (int64_t x = 0; x < block.columns; ++x) {
        total = V::add(total, codes.integers(row + x * block.column_step, lanes));
      }
    }
    return total;
  }

  TQ_HOST_DEVICE static int64_t length(const PoolWindow& window) {
    return window.end > window.begin ? window.end - window.begin : 0;
  }

  template <typename Store>
  TQ_HOST_DEVICE static void average_pixels(const AvgPoolArgs& args, IndexRange pixels, const Store& store) {
    const ImageLayout& in = args.x_layout;
    const CentredCodes<V> codes(args.x_type, args.x_zero_point);
    for_each_row_part(args.out_layout, pixels.begin, pixels.end, [&](PixelIndex pixel, int64_t count) {
      const PoolWindow y = args.rows[pixel.row];
      const uint8_t* rows = static_cast<const uint8_t*>(args.x) + in.offset(pixel.image, y.begin, 0);
      int64_t out = args.out_layout.offset(pixel.image, pixel.row, pixel.column);
      for (int64_t i = 0; i < count; ++i, out += args.out_layout.pixel_pitch) {
        const PoolWindow x = args.columns[pixel.column + i];
        const Block block{rows + x.begin * in.pixel_pitch, length(y), in.row_pitch, length(x), in.pixel_pitch};
        const int64_t divisor = args.divisor != 0 ? args.divisor : y.count * x.count;
        const Float factor = V::set(args.multiplier / static_cast<float>(divisor));
        // What the zero points add up to; like the sum, it fits: the op has refused larger windows.
        const Int offset = V::set_int(static_cast<int32_t>(block.rows * block.columns * codes.offset));
        for_each_vector(args.channels, [&](int64_t c, auto lanes) {
          const Int centred = V::sub(sum(codes, block, c, lanes), offset);
          store(out + c, V::mul(V::to_float(centred), factor), lanes);
        });
      }
    });
  }

  TQ_KERNEL static void avg_pool(const AvgPoolArgs& args, IndexRange pixels) {
    if (!is_clamp_or_none(args.output)) return reference::avg_pool(args, pixels);
    with_store<V>(args.output, args.out, [&](const auto& store) { average_pixels(args, pixels, store); });
  }

  static consteval void fill(QuantizedKernels& table) {
    table.max_pool = max_pool;
    table.avg_pool = avg_pool;
  }
};

}  // namespace torchquant::kernels
