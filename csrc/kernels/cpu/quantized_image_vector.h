// Conversions, copies and resizes of images over vectors, written once for every vector instruction set: V as in
// codes_vector.h, B the Bytes of bytes_avx2.h or bytes_avx512.h. Included by quantized_avx2.cpp and
// quantized_avx512.cpp.
#pragma once

#include "kernels/cpu/codes_vector.h"
#include "kernels/cpu/fake_quantize_vector.h"
#include "kernels/cpu/quantized_reference.h"

namespace torchquant::kernels {

template <typename V, typename B>
struct QuantizedImageVector {
  using Float = typename V::Float;
  using Codes = typename V::Codes;
  using Affine = FakeQuantizeVector<V>;

  // Calls body(i, lanes) like for_each_vector, with `i` a multiple of 16 positions or channels.
  template <typename Body>
  TQ_HOST_DEVICE static void for_each_tile(int64_t columns, int64_t channels, Body&& body) {
    for_each_vector(columns, [&](int64_t column, auto column_lanes) {
      for_each_vector(channels,
                      [&](int64_t channel, auto channel_lanes) { body(column, column_lanes, channel, channel_lanes); });
    });
  }

  // rows[i] byte j <-> rows[j] byte i. Each round interleaves row i with row i + 8; the fourth completes the transpose.
  TQ_HOST_DEVICE static void transpose(Codes (&rows)[kLanes]) {
    Codes mixed[kLanes];
#pragma GCC unroll 2
    for (int round = 0; round < 2; ++round) {
      interleave(rows, mixed);
      interleave(mixed, rows);
    }
  }
  TQ_HOST_DEVICE static void interleave(const Codes (&from)[kLanes], Codes (&to)[kLanes]) {
#pragma GCC unroll 8
    for (int i = 0; i < kLanes / 2; ++i) {
      to[2 * i] = _mm_unpacklo_epi8(from[i], from[i + 8]);
      to[2 * i + 1] = _mm_unpackhi_epi8(from[i], from[i + 8]);
    }
  }

  // ---- quantize ----

  struct Quantizer {
    TQ_HOST_DEVICE explicit Quantizer(const QuantizeImageArgs& args)
        : params(args.qparams), range(Affine::make_range(args.range)) {}
    template <typename Lanes>
    TQ_HOST_DEVICE Codes operator()(const float* x, Lanes lanes) const {
      return V::narrow(Affine::quantize_value(V::load(x, lanes), params.p, range));
    }
    typename Affine::RunParams params;
    typename Affine::VectorRange range;
  };

  TQ_HOST_DEVICE static void quantize_run(const Quantizer& quantize, const float* x, uint8_t* out, int64_t n) {
    for_each_vector(n, [&](int64_t i, auto lanes) { V::store_bytes(out + i, quantize(x + i, lanes), lanes); });
  }

  // Three planes into pixels of three bytes: byte j of the 48 is channel j % 3 of pixel j / 3.
  TQ_HOST_DEVICE static void quantize_rgb_row(const Quantizer& quantize, const float* x, int64_t plane, uint8_t* out,
                                              int64_t width) {
    alignas(16) uint8_t source[3][3][kLanes];  // [third of the result][channel]: which pixel, or none
    for (int j = 0; j < 3 * kLanes; ++j) {
      for (int c = 0; c < 3; ++c) source[j / kLanes][c][j % kLanes] = static_cast<uint8_t>(j % 3 == c ? j / 3 : 0x80);
    }
    for_each_vector(width, [&](int64_t column, auto lanes) {
      const Codes codes[3] = {quantize(x + column, lanes), quantize(x + plane + column, lanes),
                              quantize(x + 2 * plane + column, lanes)};
      for (int third = 0; third < 3; ++third) {
        Codes mixed = _mm_setzero_si128();
        for (int c = 0; c < 3; ++c) {
          const Codes pick = _mm_load_si128(reinterpret_cast<const __m128i*>(source[third][c]));
          mixed = _mm_or_si128(mixed, _mm_shuffle_epi8(codes[c], pick));
        }
        store_part(out + 3 * column, mixed, third, 3 * lanes.count);
      }
    });
  }
  // Bytes [16 part, 16 part + 16) of `total` ones.
  TQ_HOST_DEVICE static void store_part(uint8_t* out, Codes bytes, int part, int total) {
    const int rest = total - part * kLanes;
    if (rest >= kLanes) {
      V::store_bytes(out + part * kLanes, bytes, AllLanes{});
    } else if (rest > 0) {
      V::store_bytes(out + part * kLanes, bytes, FirstLanes{rest});
    }
  }

  TQ_HOST_DEVICE static void quantize_planes_row(const Quantizer& quantize, const float* x, int64_t plane, uint8_t* out,
                                                 int64_t pixel_pitch, int64_t width, int64_t channels) {
    for_each_tile(width, channels, [&](int64_t column, auto column_lanes, int64_t channel, auto channel_lanes) {
      const float* corner = x + channel * plane + column;
      Codes tile[kLanes];
      for (int c = 0; c < kLanes; ++c) {
        tile[c] = c < channel_lanes.count ? quantize(corner + c * plane, column_lanes) : _mm_setzero_si128();
      }
      transpose(tile);
      uint8_t* pixel = out + column * pixel_pitch + channel;
      for (int i = 0; i < column_lanes.count; ++i) V::store_bytes(pixel + i * pixel_pitch, tile[i], channel_lanes);
    });
  }

  TQ_KERNEL static void quantize_image(const QuantizeImageArgs& args, IndexRange rows) {
    const ImageLayout& layout = args.out_layout;
    const FloatImageStrides& strides = args.x_strides;
    const Quantizer quantize(args);
    if (strides.channel != 1 && strides.column != 1) return reference::quantize_image(args, rows);
    for (int64_t i = rows.begin; i < rows.end; ++i) {
      const int64_t image = i / layout.height;
      const int64_t row = i % layout.height;
      const float* x = args.x + image * strides.image + row * strides.row;
      uint8_t* out = static_cast<uint8_t*>(args.out) + layout.offset(image, row, 0);
      if (strides.channel == 1 && strides.column == args.channels && layout.pixel_pitch == args.channels) {
        quantize_run(quantize, x, out, layout.width * args.channels);
      } else if (strides.channel == 1 && args.channels > 1) {
        for (int64_t column = 0; column < layout.width; ++column) {
          quantize_run(quantize, x + column * strides.column, out + column * layout.pixel_pitch, args.channels);
        }
      } else if (args.channels == 3 && layout.pixel_pitch == 3) {
        quantize_rgb_row(quantize, x, strides.channel, out, layout.width);
      } else {
        quantize_planes_row(quantize, x, strides.channel, out, layout.pixel_pitch, layout.width, args.channels);
      }
    }
  }

  // ---- dequantize ----

  struct Dequantizer {
    TQ_HOST_DEVICE explicit Dequantizer(const DequantizeImageArgs& args)
        : codes(args.x_type, static_cast<int32_t>(args.qparams.zero_point)), scale(V::set(args.qparams.scale)) {}
    template <typename Lanes>
    TQ_HOST_DEVICE Float load(const uint8_t* x, Lanes lanes) const {
      return V::mul(codes.values(x, lanes), scale);
    }
    TQ_HOST_DEVICE Float operator()(Codes q) const {
      return V::mul(V::sub(V::to_float(V::widen(_mm_xor_si128(q, codes.flip))), codes.zero), scale);
    }
    CentredCodes<V> codes;
    Float scale;
  };

  TQ_HOST_DEVICE static void dequantize_run(const Dequantizer& dequantize, const uint8_t* x, float* out, int64_t n) {
    for_each_vector(n, [&](int64_t i, auto lanes) { V::store(out + i, dequantize.load(x + i, lanes), lanes); });
  }

  TQ_HOST_DEVICE static void dequantize_planes_row(const Dequantizer& dequantize, const uint8_t* x, int64_t pixel_pitch,
                                                   float* out, int64_t plane, int64_t width, int64_t channels) {
    for_each_tile(width, channels, [&](int64_t column, auto column_lanes, int64_t channel, auto channel_lanes) {
      const uint8_t* pixel = x + column * pixel_pitch + channel;
      Codes tile[kLanes];
      for (int i = 0; i < kLanes; ++i) {
        tile[i] = i < column_lanes.count ? V::load_bytes(pixel + i * pixel_pitch, channel_lanes) : _mm_setzero_si128();
      }
      transpose(tile);
      float* corner = out + channel * plane + column;
      for (int c = 0; c < channel_lanes.count; ++c) V::store(corner + c * plane, dequantize(tile[c]), column_lanes);
    });
  }

  TQ_KERNEL static void dequantize_image(const DequantizeImageArgs& args, IndexRange rows) {
    const ImageLayout& layout = args.x_layout;
    const FloatImageStrides& strides = args.out_strides;
    if (strides.channel != 1 && strides.column != 1) return reference::dequantize_image(args, rows);
    const Dequantizer dequantize(args);
    for (int64_t i = rows.begin; i < rows.end; ++i) {
      const int64_t image = i / layout.height;
      const int64_t row = i % layout.height;
      const uint8_t* x = static_cast<const uint8_t*>(args.x) + layout.offset(image, row, 0);
      float* out = args.out + image * strides.image + row * strides.row;
      if (strides.channel == 1 && strides.column == args.channels && layout.pixel_pitch == args.channels) {
        dequantize_run(dequantize, x, out, layout.width * args.channels);
      } else if (strides.channel == 1 && args.channels > 1) {
        for (int64_t column = 0; column < layout.width; ++column) {
          dequantize_run(dequantize, x + column * layout.pixel_pitch, out + column * strides.column, args.channels);
        }
      } else {
        dequantize_planes_row(dequantize, x, layout.pixel_pitch, out, strides.channel, layout.width, args.channels);
      }
    }
  }

  // ---- copy ----

  TQ_HOST_DEVICE static void copy_run(const uint8_t* x, uint8_t* out, int64_t n) {
    int64_t i = 0;
    for (; i + B::kWidth <= n; i += B::kWidth) B::store(out + i, B::load(x + i));
    if (i < n) B::store(out + i, B::load(x + i, n - i), n - i);
  }

  TQ_KERNEL static void copy_image(const CopyImageArgs& args, IndexRange rows) {
    const ImageLayout& from = args.x_layout;
    const ImageLayout& to = args.out_layout;
    const bool dense =
        args.source_columns == nullptr && from.pixel_pitch == args.channels && to.pixel_pitch == args.channels;
    for (int64_t i = rows.begin; i < rows.end; ++i) {
      const int64_t image = i / to.height;
      const int64_t row = i % to.height;
      const int64_t source_row = args.source_rows != nullptr ? args.source_rows[row] : row;
      const uint8_t* x = static_cast<const uint8_t*>(args.x) + from.offset(image, source_row, 0);
      uint8_t* out = static_cast<uint8_t*>(args.out) + to.offset(image, row, 0);
      if (dense) {
        copy_run(x, out, to.width * args.channels);
        continue;
      }
      for (int64_t column = 0; column < to.width; ++column) {
        const int64_t source = args.source_columns != nullptr ? args.source_columns[column] : column;
        copy_run(x + source * from.pixel_pitch, out + column * to.pixel_pitch, args.channels);
      }
    }
  }

  // ---- linear resize ----

  struct VectorTap {
    TQ_HOST_DEVICE explicit VectorTap(const numerics::LinearTap& tap)
        : first(V::set(tap.weight[0])), second(V::set(tap.weight[1])) {}
    TQ_HOST_DEVICE Float operator()(Float a, Float b) const { return V::fma(b, second, V::mul(a, first)); }
    Float first, second;
  };

  template <typename Store>
  TQ_HOST_DEVICE static void resize_rows(const ResizeLinearArgs& args, IndexRange rows, const Store& store) {
    const ImageLayout& layout = args.out_layout;
    const CentredCodes<V> codes(args.x_type, args.x_zero_point);
    const Float multiplier = V::set(args.multiplier);
    for (int64_t i = rows.begin; i < rows.end; ++i) {
      const int64_t image = i / layout.height;
      const int64_t row = i % layout.height;
      const numerics::LinearTap& y = args.rows[row];
      const auto* x = static_cast<const uint8_t*>(args.x);
      const uint8_t* upper_row = x + args.x_layout.offset(image, y.index[0], 0);
      const uint8_t* lower_row = x + args.x_layout.offset(image, y.index[1], 0);
      const VectorTap along_rows(y);
      for (int64_t column = 0; column < layout.width; ++column) {
        const numerics::LinearTap& tap = args.columns[column];
        const int64_t left = tap.index[0] * args.x_layout.pixel_pitch;
        const int64_t right = tap.index[1] * args.x_layout.pixel_pitch;
        const VectorTap along_columns(tap);
        const int64_t out = layout.offset(image, row, column);
        for_each_vector(args.channels, [&](int64_t c, auto lanes) {
          const Float upper =
              along_columns(codes.values(upper_row + left + c, lanes), codes.values(upper_row + right + c, lanes));
          const Float lower =
              along_columns(codes.values(lower_row + left + c, lanes), codes.values(lower_row + right + c, lanes));
          store(out + c, V::mul(along_rows(upper, lower), multiplier), lanes);
        });
      }
    }
  }

  TQ_KERNEL static void resize_linear(const ResizeLinearArgs& args, IndexRange rows) {
    if (!is_clamp_or_none(args.output)) return reference::resize_linear(args, rows);
    with_store<V>(args.output, args.out, [&](const auto& store) { resize_rows(args, rows, store); });
  }

  static consteval void fill(QuantizedKernels& table) {
    table.quantize_image = quantize_image;
    table.dequantize_image = dequantize_image;
    table.copy_image = copy_image;
    table.resize_linear = resize_linear;
  }
};

}  // namespace torchquant::kernels
