// Images of codes at the edges of an integer network and between its ops: from and to fp32, copied, resized, bordered.
// Called by csrc/ops/. Every kernel works on output rows counted over the batch.
#pragma once

#include <cstdint>

#include "kernels/image.h"
#include "kernels/quantized_types.h"
#include "numerics/resize.h"

namespace torchquant::kernels {

// An fp32 image of any memory format: elements from one image, channel, row and column to the next.
struct FloatImageStrides {
  int64_t image;
  int64_t channel;
  int64_t row;
  int64_t column;
};

// out = quantize(x) (numerics/affine.h), stored as one byte: int8 or uint8 by the range.
struct QuantizeImageArgs {
  int64_t channels;
  const float* x;
  FloatImageStrides x_strides;
  numerics::QParams qparams;
  QRange range;
  void* out;
  ImageLayout out_layout;
};

// out = dequantize(x); `height` and `width` are those of x_layout.
struct DequantizeImageArgs {
  int64_t channels;
  const void* x;
  ElementType x_type;  // kUInt8 or kInt8
  ImageLayout x_layout;
  numerics::QParams qparams;
  float* out;
  FloatImageStrides out_strides;
};

// out(row, column) = x(source_rows[row], source_columns[column]): nearest resize, and with null maps, which stand for
// identity, a copy: into a padded buffer, or one slice of a concatenation.
struct CopyImageArgs {
  int64_t channels;
  const void* x;
  ImageLayout x_layout;
  const int64_t* source_rows;
  const int64_t* source_columns;
  void* out;
  ImageLayout out_layout;
};

// v = multiplier * the interpolation, along the columns and then the rows, of float(q - x_zero_point)
// (numerics/resize.h); one tap per output row and column.
struct ResizeLinearArgs {
  int64_t channels;
  const void* x;
  ElementType x_type;
  ImageLayout x_layout;
  int32_t x_zero_point;
  const numerics::LinearTap* rows;
  const numerics::LinearTap* columns;
  float multiplier;
  OutputSpec output;
  void* out;
  ImageLayout out_layout;
};

// Stores `code` in `channels` elements of every border pixel of images [images.begin, images.end); `data` is the first
// pixel inside the border. memset is as fast as any kernel, so this stands in no table.
void fill_border(void* data, const ImageLayout& layout, int64_t channels, const ImageBorder& border, int32_t code,
                 IndexRange images);

}  // namespace torchquant::kernels
