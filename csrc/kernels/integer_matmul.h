// Products of two matrices of codes, batched: attention whose both sides are quantized. Nothing is packed before the
// call, because both sides change with every call. Called by csrc/ops/quantized_matmul.cpp and by islands; what one
// product is, and where it lies, is the same on CUDA (cuda/integer_matmul.h).
//
//   acc[r, c] = sum over k of (a[r, k] - z_a) * (b[k, c] - z_b)     exact
//   v = acc * multiplier, rounded once, then `output`
#pragma once

#include <cstdint>
#include <limits>

#include "kernels/isa.h"
#include "kernels/quantized_pointwise.h"
#include "kernels/quantized_types.h"
#include "numerics/macros.h"

namespace torchquant::kernels {

// The most products of two centred codes, 255 * 255 each, that an int32 sum holds.
inline constexpr int64_t kMaxMatmulDepth = std::numeric_limits<int32_t>::max() / (255 * 255);

// Where one product of the batch has its operands and its result, in elements from their addresses.
struct MatmulPlace {
  int64_t a;
  int64_t b;
  int64_t out;
};

// One leading dimension. Strides in elements; 0 repeats an operand.
struct MatmulAxis {
  int64_t size;
  int64_t a;
  int64_t b;
  int64_t out;
};

// The leading dimensions, the outermost first.
struct MatmulBatch {
  static constexpr int kMostAxes = 6;
  int axes;
  MatmulAxis axis[kMostAxes];

  TQ_HOST_DEVICE int64_t products() const {
    int64_t count = 1;
    for (int i = 0; i < axes; ++i) count *= axis[i].size;
    return count;
  }

  TQ_HOST_DEVICE MatmulPlace place(int64_t product) const {
    MatmulPlace place{0, 0, 0};
    for (int i = axes - 1; i >= 0; --i) {
      const int64_t index = product % axis[i].size;
      product /= axis[i].size;
      place.a += index * axis[i].a;
      place.b += index * axis[i].b;
      place.out += index * axis[i].out;
    }
    return place;
  }
};

// Strides in elements.
struct MatmulArgs {
  int64_t rows;
  int64_t depth;  // 1 to kMaxMatmulDepth
  int64_t columns;
  Operand a;  // [rows, depth], each row dense
  int64_t a_row_stride;
  Operand b;  // [depth, columns], one of its strides 1 unless it has one column
  int64_t b_row_stride;
  int64_t b_column_stride;
  float multiplier;  // (s_a * s_b) / s_y
  OutputSpec output;
  void* out;  // [rows, columns], each row dense
  int64_t out_row_stride;
  MatmulBatch batch;
};

// The work is cut into panels of this many columns, product after product.
inline constexpr int64_t kMatmulPanel = 32;
inline int64_t panels_of_one(const MatmulArgs& args) { return (args.columns + kMatmulPanel - 1) / kMatmulPanel; }
inline int64_t matmul_panels(const MatmulArgs& args) { return args.batch.products() * panels_of_one(args); }

// Panels that follow each other share the work on their rows. A thread keeps the memory that its largest call needed,
// so that later ones allocate nothing (but for the reference's).
using IntegerMatmul = void (*)(const MatmulArgs& args, IndexRange panels);

// The kernel of an instruction set, which must be among available_isas().
IntegerMatmul integer_matmul(Isa isa);

}  // namespace torchquant::kernels
