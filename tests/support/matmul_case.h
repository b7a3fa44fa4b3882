// Products of matrices of codes, with their results by sums in int64. Used by the tests of integer_matmul() on CPU and
// CUDA.
#pragma once

#include <algorithm>
#include <cstring>
#include <string>
#include <vector>

#include "kernels/integer_matmul.h"
#include "support/rng.h"

namespace torchquant::test {

using kernels::ElementType;
using kernels::MatmulArgs;
using kernels::MatmulBatch;
using kernels::MatmulPlace;
using kernels::OutputSpec;

inline OutputSpec codes_output(ElementType type, float zero_point,
                               kernels::ActivationSpec activation = numerics::no_activation()) {
  const kernels::QRange range =
      type == ElementType::kUInt8 ? kernels::QRange{0.0f, 255.0f} : kernels::QRange{-128.0f, 127.0f};
  return {type, zero_point, range, activation};
}
inline OutputSpec float_output() { return {ElementType::kFloat32, 0.0f, {0.0f, 0.0f}, numerics::no_activation()}; }

// A batch of products whose rows lie `gap` elements further apart than they must.
struct MatmulCase {
  int64_t rows = 1, depth = 1, columns = 1;
  ElementType a_type = ElementType::kUInt8, b_type = ElementType::kUInt8;
  int32_t a_zero_point = 100, b_zero_point = 100;
  bool transposed = false;  // b lies as [columns, depth]
  int64_t gap = 0;
  int64_t batch = 1, heads = 1;
  float multiplier = 0.01f;
  OutputSpec output = codes_output(ElementType::kUInt8, 13.0f);
  int64_t fill_a = -1, fill_b = -1;  // a byte for all codes, random ones otherwise

  std::string describe() const {
    return std::to_string(rows) + "x" + std::to_string(depth) + "x" + std::to_string(columns) + " types " +
           std::to_string(static_cast<int>(a_type)) + std::to_string(static_cast<int>(b_type)) + " zero points " +
           std::to_string(a_zero_point) + " " + std::to_string(b_zero_point) + (transposed ? " transposed" : "") +
           " gap " + std::to_string(gap) + " batch " + std::to_string(batch) + "x" + std::to_string(heads);
  }
};

inline int64_t matmul_code(uint8_t byte, ElementType type) {
  return type == ElementType::kInt8 ? static_cast<int8_t>(byte) : byte;
}

class MatmulProblem {
 public:
  MatmulProblem(const MatmulCase& sizes, uint64_t seed) : case_(sizes) {
    Random random(seed);
    const int64_t a_row = sizes.depth + sizes.gap;
    const int64_t b_line = (sizes.transposed ? sizes.depth : sizes.columns) + sizes.gap;
    const int64_t b_lines = sizes.transposed ? sizes.columns : sizes.depth;
    const int64_t out_row = sizes.columns + sizes.gap;
    // Exactly what may be read: nothing lies behind the last row.
    a_.resize(sizes.batch * sizes.heads * sizes.rows * a_row - sizes.gap);
    b_.resize(sizes.batch * b_lines * b_line - sizes.gap);
    for (uint8_t& byte : a_) byte = static_cast<uint8_t>(sizes.fill_a < 0 ? random.integer(0, 255) : sizes.fill_a);
    for (uint8_t& byte : b_) byte = static_cast<uint8_t>(sizes.fill_b < 0 ? random.integer(0, 255) : sizes.fill_b);
    out_bytes_ =
        sizes.batch * sizes.heads * sizes.rows * out_row * (sizes.output.type == ElementType::kFloat32 ? 4 : 1);
    // Two leading dimensions: the outer one of all, the inner one repeats b and has its results further apart.
    const MatmulBatch batch{2,
                            {{sizes.batch, sizes.heads * sizes.rows * a_row, b_lines * b_line, sizes.rows * out_row},
                             {sizes.heads, sizes.rows * a_row, 0, sizes.batch * sizes.rows * out_row}}};
    args_ = {sizes.rows,
             sizes.depth,
             sizes.columns,
             {a_.data(), sizes.a_type, sizes.a_zero_point},
             a_row,
             {b_.data(), sizes.b_type, sizes.b_zero_point},
             sizes.transposed ? 1 : b_line,
             sizes.transposed ? b_line : 1,
             sizes.multiplier,
             sizes.output,
             nullptr,
             out_row,
             batch};
  }

  // The bytes of the result that `compute` gives, with the gaps between its rows.
  template <typename Compute>
  std::vector<uint8_t> run(Compute&& compute) const {
    std::vector<uint8_t> out(out_bytes_, 0xA5);
    MatmulArgs args = args_;
    args.out = out.data();
    compute(args);
    return out;
  }

  std::vector<uint8_t> expected() const {
    std::vector<uint8_t> out(out_bytes_, 0xA5);
    for (int64_t product = 0; product < case_.batch * case_.heads; ++product) {
      const MatmulPlace place = args_.batch.place(product);
      for (int64_t r = 0; r < case_.rows; ++r) {
        for (int64_t c = 0; c < case_.columns; ++c)
          store(sum(place, r, c), place.out + r * args_.out_row_stride + c, out);
      }
    }
    return out;
  }

 private:
  int64_t sum(const MatmulPlace& place, int64_t r, int64_t c) const {
    int64_t total = 0;
    for (int64_t k = 0; k < case_.depth; ++k) {
      const int64_t a = matmul_code(a_[place.a + r * args_.a_row_stride + k], case_.a_type) - case_.a_zero_point;
      const int64_t b = matmul_code(b_[place.b + k * args_.b_row_stride + c * args_.b_column_stride], case_.b_type) -
                        case_.b_zero_point;
      total += a * b;
    }
    return total;
  }

  void store(int64_t total, int64_t element, std::vector<uint8_t>& out) const {
    const OutputSpec& spec = case_.output;
    const float v = numerics::activate(numerics::scale_accumulator(static_cast<int32_t>(total), case_.multiplier, 0.0f),
                                       spec.activation);
    if (spec.type == ElementType::kFloat32) {
      std::memcpy(out.data() + element * 4, &v, 4);
    } else {
      out[element] = static_cast<uint8_t>(static_cast<int32_t>(numerics::output_code(v, spec.zero_point, spec.range)));
    }
  }

  MatmulCase case_;
  std::vector<uint8_t> a_, b_;
  MatmulArgs args_{};
  int64_t out_bytes_ = 0;
};

}  // namespace torchquant::test
