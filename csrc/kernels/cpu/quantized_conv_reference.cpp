// Reference convolution: gathers the patch of each output pixel and multiplies it with the weights; depthwise layers
// multiply channel by channel instead. Reached through kernels/integer_conv.h.
#include "kernels/cpu/quantized_conv_reference.h"

#include "kernels/cpu/quantized_tile_reference.h"

namespace torchquant::kernels::reference {
namespace {

bool is_depthwise(const ConvGeometry& g) { return g.groups == g.in_channels && g.groups == g.out_channels; }

// Input position that kernel tap `tap` of output position `out` reads, or -1 where it reads padding (transposed: also
// where the stride leaves a hole).
int64_t input_position(const ConvAxis& axis, int64_t out, int64_t tap, bool transposed) {
  if (!transposed) {
    const int64_t in = out * axis.stride - axis.padding + tap * axis.dilation;
    return in >= 0 && in < axis.in_size ? in : -1;
  }
  const int64_t reach = out + axis.padding - tap * axis.dilation;
  if (reach < 0 || reach % axis.stride != 0) return -1;
  return reach / axis.stride < axis.in_size ? reach / axis.stride : -1;
}

// An output position: image, row, column.
struct Pixel {
  int64_t image;
  int64_t y;
  int64_t x;
};

Pixel pixel_at(const ConvGeometry& g, int64_t index) {
  const int64_t row = index / g.width.out_size;
  return {row / g.height.out_size, row % g.height.out_size, index % g.width.out_size};
}

// Calls fn(tap, element) for every tap of the pixel, with the element of x at which the input pixel starts, or -1.
template <typename Fn>
void for_each_tap(const ConvArgs& args, Pixel pixel, Fn&& fn) {
  const ConvGeometry& g = args.geometry;
  for (int64_t ky = 0; ky < g.height.kernel; ++ky) {
    const int64_t y = input_position(g.height, pixel.y, ky, g.transposed);
    for (int64_t kx = 0; kx < g.width.kernel; ++kx) {
      const int64_t x = y < 0 ? -1 : input_position(g.width, pixel.x, kx, g.transposed);
      fn(ky * g.width.kernel + kx, x < 0 ? -1 : args.x_layout.offset(pixel.image, y, x));
    }
  }
}

// The centred inputs of one pixel and group, in the order of the arranged weights: taps, then channels.
template <typename T>
void gather_patch(const ConvArgs& args, Pixel pixel, int64_t group, int16_t* patch) {
  const ConvGeometry& g = args.geometry;
  const int64_t depth = g.in_channels / g.groups;
  const T* x = static_cast<const T*>(args.x) + group * depth;
  for_each_tap(args, pixel, [&](int64_t tap, int64_t element) {
    if (element < 0) {
      std::fill_n(patch + tap * depth, depth, int16_t{0});
    } else {
      centre(x + element, depth, args.x_zero_point, patch + tap * depth);
    }
  });
}

void finish_pixel(const int32_t* acc, const ConvArgs& args, Pixel pixel) {
  finish_row(acc, 0, args.geometry.out_channels, args.epilogue, args.out,
             args.out_layout.offset(pixel.image, pixel.y, pixel.x),
             args.residual_layout.offset(pixel.image, pixel.y, pixel.x));
}

template <typename T>
void conv_grouped(const ConvArgs& args, IndexRange pixels) {
  const ConvGeometry& g = args.geometry;
  const int64_t group_channels = g.out_channels / g.groups;
  const int64_t depth = g.height.kernel * g.width.kernel * (g.in_channels / g.groups);
  std::vector<int16_t> tile(kTileRows * depth);
  std::vector<int32_t> acc(kTileRows * g.out_channels);
  for (int64_t begin = pixels.begin; begin < pixels.end; begin += kTileRows) {
    const int64_t count = std::min(kTileRows, pixels.end - begin);
    for (int64_t group = 0; group < g.groups; ++group) {
      for (int64_t r = 0; r < count; ++r) gather_patch<T>(args, pixel_at(g, begin + r), group, tile.data() + r * depth);
      multiply_tile(tile.data(), count, args.weight + group * group_channels * depth, group_channels, depth,
                    acc.data() + group * group_channels, g.out_channels);
    }
    for (int64_t r = 0; r < count; ++r) {
      finish_pixel(acc.data() + r * g.out_channels, args, pixel_at(g, begin + r));
    }
  }
}

template <typename T>
void conv_depthwise(const ConvArgs& args, IndexRange pixels) {
  const ConvGeometry& g = args.geometry;
  std::vector<int32_t> acc(g.out_channels);
  for (int64_t p = pixels.begin; p < pixels.end; ++p) {
    std::fill(acc.begin(), acc.end(), 0);
    const Pixel pixel = pixel_at(g, p);
    for_each_tap(args, pixel, [&](int64_t tap, int64_t element) {
      if (element < 0) return;
      const T* x = static_cast<const T*>(args.x) + element;
      const int8_t* weight = args.weight + tap * g.out_channels;
      for (int64_t c = 0; c < g.out_channels; ++c) {
        const auto centred = static_cast<int16_t>(x[c] - args.x_zero_point);
        acc[c] += static_cast<int32_t>(centred) * static_cast<int32_t>(weight[c]);
      }
    });
    finish_pixel(acc.data(), args, pixel);
  }
}

}  // namespace

// Grouped: [O, kh * kw, I/g]. Depthwise: [kh * kw, C].
void arrange_conv_weight(const ConvGeometry& g, const ConvWeight& weight, IndexRange channels, int8_t* arranged) {
  const int64_t group_in = g.in_channels / g.groups;
  const int64_t group_out = g.out_channels / g.groups;
  const int64_t taps = g.height.kernel * g.width.kernel;
  const bool depthwise = is_depthwise(g);
  for (int64_t o = channels.begin; o < channels.end; ++o) {
    // Where output channel o's inputs start, and how far apart they are.
    const int64_t start = g.transposed
                              ? (o / group_out) * group_in * weight.strides[0] + (o % group_out) * weight.strides[1]
                              : o * weight.strides[0];
    const int64_t step = g.transposed ? weight.strides[0] : weight.strides[1];
    for (int64_t ky = 0; ky < g.height.kernel; ++ky) {
      for (int64_t kx = 0; kx < g.width.kernel; ++kx) {
        const int64_t tap = ky * g.width.kernel + kx;
        const int8_t* source = weight.data + start + ky * weight.strides[2] + kx * weight.strides[3];
        int8_t* target = arranged + (depthwise ? tap * g.out_channels + o : (o * taps + tap) * group_in);
        for (int64_t i = 0; i < group_in; ++i) target[i] = source[i * step];
      }
    }
  }
}

void conv(const ConvArgs& args, IndexRange pixels) {
  with_code_type(args.x_type, [&](auto* code) {
    using T = std::remove_cv_t<std::remove_pointer_t<decltype(code)>>;
    if (is_depthwise(args.geometry)) {
      conv_depthwise<T>(args, pixels);
    } else {
      conv_grouped<T>(args, pixels);
    }
  });
}

}  // namespace torchquant::kernels::reference
