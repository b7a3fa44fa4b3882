// Reference conversions, copies and resizes of images. Reached through kernels/quantized_kernels.h.
#include <cstring>

#include "kernels/cpu/quantized_reference.h"
#include "kernels/cpu/quantized_tile_reference.h"

namespace torchquant::kernels::reference {

void quantize_image(const QuantizeImageArgs& args, IndexRange rows) {
  const ImageLayout& layout = args.out_layout;
  const FloatImageStrides& strides = args.x_strides;
  for (int64_t i = rows.begin; i < rows.end; ++i) {
    const int64_t image = i / layout.height;
    const int64_t row = i % layout.height;
    for (int64_t column = 0; column < layout.width; ++column) {
      const float* x = args.x + image * strides.image + row * strides.row + column * strides.column;
      auto* out = static_cast<uint8_t*>(args.out) + layout.offset(image, row, column);
      for (int64_t c = 0; c < args.channels; ++c) {
        const float code = numerics::quantize_value(x[c * strides.channel], args.qparams, args.range);
        out[c] = static_cast<uint8_t>(static_cast<int32_t>(code));
      }
    }
  }
}

void dequantize_image(const DequantizeImageArgs& args, IndexRange rows) {
  const ImageLayout& layout = args.x_layout;
  const FloatImageStrides& strides = args.out_strides;
  with_code_type(args.x_type, [&](auto* code) {
    for (int64_t i = rows.begin; i < rows.end; ++i) {
      const int64_t image = i / layout.height;
      const int64_t row = i % layout.height;
      for (int64_t column = 0; column < layout.width; ++column) {
        const auto* x = static_cast<decltype(code)>(args.x) + layout.offset(image, row, column);
        float* out = args.out + image * strides.image + row * strides.row + column * strides.column;
        for (int64_t c = 0; c < args.channels; ++c) {
          out[c * strides.channel] = numerics::dequantize_value(x[c], args.qparams);
        }
      }
    }
  });
}

void copy_image(const CopyImageArgs& args, IndexRange rows) {
  const ImageLayout& layout = args.out_layout;
  for (int64_t i = rows.begin; i < rows.end; ++i) {
    const int64_t image = i / layout.height;
    const int64_t row = i % layout.height;
    const int64_t source_row = args.source_rows != nullptr ? args.source_rows[row] : row;
    for (int64_t column = 0; column < layout.width; ++column) {
      const int64_t source_column = args.source_columns != nullptr ? args.source_columns[column] : column;
      memcpy(static_cast<uint8_t*>(args.out) + layout.offset(image, row, column),
             static_cast<const uint8_t*>(args.x) + args.x_layout.offset(image, source_row, source_column),
             static_cast<size_t>(args.channels));
    }
  }
}

void resize_linear(const ResizeLinearArgs& args, IndexRange rows) {
  const ImageLayout& layout = args.out_layout;
  std::vector<float> v(args.channels);
  with_code_type(args.x_type, [&](auto* code) {
    for (int64_t i = rows.begin; i < rows.end; ++i) {
      const int64_t image = i / layout.height;
      const int64_t row = i % layout.height;
      for (int64_t column = 0; column < layout.width; ++column) {
        const numerics::LinearTap& y = args.rows[row];
        const numerics::LinearTap& x = args.columns[column];
        const auto value = [&](int corner_y, int corner_x, int64_t c) {
          const auto* pixel =
              static_cast<decltype(code)>(args.x) + args.x_layout.offset(image, y.index[corner_y], x.index[corner_x]);
          return static_cast<float>(pixel[c] - args.x_zero_point);
        };
        for (int64_t c = 0; c < args.channels; ++c) {
          const float upper = numerics::interpolate(value(0, 0, c), value(0, 1, c), x);
          const float lower = numerics::interpolate(value(1, 0, c), value(1, 1, c), x);
          v[c] = numerics::interpolate(upper, lower, y) * args.multiplier;
        }
        store_values(v.data(), args.channels, args.output, args.out, layout.offset(image, row, column));
      }
    }
  });
}

}  // namespace torchquant::kernels::reference
