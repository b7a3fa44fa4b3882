// Where the numbers of an integer convolution lie on the device: which input pixel a kernel tap reads, how weights are
// packed, how tiles lie in shared memory. Host and device, so that tests reach it without a GPU; used by
// integer_conv*.cu.
#pragma once

#include <cstdint>

#include "kernels/integer_conv.h"
#include "numerics/macros.h"

namespace torchquant::kernels::cuda {

TQ_HOST_DEVICE constexpr int64_t round_up(int64_t value, int64_t multiple) {
  return (value + multiple - 1) / multiple * multiple;
}

// Tap `tap` of output position `out` reads input position (out * scale + offset + tap * step) / divisor. Forward:
// scale = stride, divisor = 1. Transposed: divisor = stride, and positions that it does not divide are holes.
struct TapAxis {
  int32_t scale;
  int32_t offset;
  int32_t step;
  int32_t divisor;
  int32_t in_size;
  int32_t out_size;
  int32_t kernel;

  // The numerator of tap 0.
  TQ_HOST_DEVICE int32_t start(int32_t out) const { return out * scale + offset; }
  // -1 for padding and holes.
  TQ_HOST_DEVICE int32_t position(int32_t start, int32_t tap) const {
    int32_t in = start + tap * step;
    if (in < 0) return -1;
    if (divisor != 1) {
      if (in % divisor != 0) return -1;
      in /= divisor;
    }
    return in < in_size ? in : -1;
  }
};

inline TapAxis tap_axis(const ConvAxisSpec& spec, bool transposed, int64_t in_size, int64_t out_size) {
  const auto narrow = [](int64_t value) { return static_cast<int32_t>(value); };
  if (transposed) {
    return {1,
            narrow(spec.padding),
            narrow(-spec.dilation),
            narrow(spec.stride),
            narrow(in_size),
            narrow(out_size),
            narrow(spec.kernel)};
  }
  return {narrow(spec.stride), narrow(-spec.padding), narrow(spec.dilation), 1,
          narrow(in_size),     narrow(out_size),      narrow(spec.kernel)};
}

// What an output pixel needs to find its inputs.
struct PixelOrigin {
  int64_t image;  // element of x at which its image starts
  int32_t y;      // TapAxis::start of either axis
  int32_t x;
};

// Dense NHWC images, seen from the output: `pixels` output positions over batch, height and width.
struct ConvShape {
  int32_t pixels;
  int32_t in_channels;
  int32_t out_channels;
  int32_t group_in;  // channels of a group
  int32_t group_out;
  TapAxis height;
  TapAxis width;

  TQ_HOST_DEVICE int32_t taps() const { return height.kernel * width.kernel; }
  TQ_HOST_DEVICE int32_t depth() const { return taps() * group_in; }

  TQ_HOST_DEVICE PixelOrigin origin(int32_t pixel) const {
    const int32_t row = pixel / width.out_size;
    const int32_t image = row / height.out_size;
    const int64_t image_elements = static_cast<int64_t>(height.in_size) * width.in_size * in_channels;
    return {image * image_elements, height.start(row % height.out_size), width.start(pixel % width.out_size)};
  }
  // A pixel that reads only padding: rows of a tile behind the last pixel.
  TQ_HOST_DEVICE static PixelOrigin nowhere() { return {0, -(1 << 30), -(1 << 30)}; }

  // Element of x at which the pixel that tap (ky, kx) reads starts, -1 in padding.
  TQ_HOST_DEVICE int64_t input_offset(const PixelOrigin& origin, int32_t ky, int32_t kx) const {
    const int32_t y = height.position(origin.y, ky);
    const int32_t x = width.position(origin.x, kx);
    if (y < 0 || x < 0) return -1;
    return origin.image + (static_cast<int64_t>(y) * width.in_size + x) * in_channels;
  }
};

// A place in the reduction: taps, then channels of the group. Behind the last tap, `ky` is the kernel's height or more.
struct DepthCursor {
  int32_t ky = 0;
  int32_t kx = 0;
  int32_t channel = 0;

  TQ_HOST_DEVICE void advance(const ConvShape& shape, int32_t steps) {
    channel += steps;
    while (channel >= shape.group_in) {
      channel -= shape.group_in;
      if (++kx == shape.width.kernel) {
        kx = 0;
        ++ky;
      }
    }
  }
};

inline bool is_depthwise(const ConvSpec& spec) {
  return spec.groups == spec.in_channels && spec.groups == spec.out_channels;
}

// Packed weights: rows of codes, one per output channel, and behind them the int32 sum of each row, which takes the
// zero point out of products of raw codes. A row has `slots` codes: taps before channels, then zeros. Depthwise, four
// taps of a kernel row stand together, zeros behind the row's last, and such quads of all channels side by side.
struct PackedConvLayout {
  int64_t out_channels;
  int64_t group_in;
  int64_t taps;
  int64_t kernel_width;
  int64_t slots;  // a multiple of 16, depthwise of 4
  bool depthwise;

  // Depthwise kernels read the quads of four channels at once.
  TQ_HOST_DEVICE int64_t rows() const { return depthwise ? round_up(out_channels, 4) : out_channels; }
  TQ_HOST_DEVICE int64_t index(int64_t row, int64_t slot) const {
    return depthwise ? (slot / 4 * rows() + row) * 4 + slot % 4 : row * slots + slot;
  }
  // The tap that a slot holds, -1 for none; its input channel is slot % group_in.
  TQ_HOST_DEVICE int64_t tap(int64_t slot) const {
    if (!depthwise) return slot < taps * group_in ? slot / group_in : -1;
    const int64_t row_slots = round_up(kernel_width, 4);
    return slot % row_slots < kernel_width ? slot / row_slots * kernel_width + slot % row_slots : -1;
  }
  TQ_HOST_DEVICE int64_t sums_offset() const { return rows() * slots; }
  TQ_HOST_DEVICE int64_t bytes() const { return sums_offset() + rows() * static_cast<int64_t>(sizeof(int32_t)); }
};

inline PackedConvLayout packed_conv_layout(const ConvSpec& spec) {
  const int64_t group_in = spec.in_channels / spec.groups;
  const int64_t taps = spec.height.kernel * spec.width.kernel;
  const bool depthwise = is_depthwise(spec);
  const int64_t slots = depthwise ? spec.height.kernel * round_up(spec.width.kernel, 4) : round_up(taps * group_in, 16);
  return {spec.out_channels, group_in, taps, spec.width.kernel, slots, depthwise};
}

// Chunks of 16 bytes in a tile of shared memory, rows of CHUNKS of them. The chunk's place within its row depends on
// the row, so that the eight rows that a matrix load reads at once lie in different banks.
template <int CHUNKS>
TQ_HOST_DEVICE int tile_offset(int row, int chunk) {
  constexpr int kAcross = CHUNKS < 8 ? CHUNKS : 8;  // chunks that trade places
  constexpr int kRowsPerLine = 8 / kAcross;         // rows in the 128 bytes that all banks hold once
  return (row * CHUNKS + (chunk ^ (row / kRowsPerLine % kAcross))) * 16;
}

}  // namespace torchquant::kernels::cuda
