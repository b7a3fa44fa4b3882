// Reference matrix products on integer weights, and the embedding. Reached through kernels/quantized_kernels.h.
#include <cmath>

#include "kernels/cpu/quantized_reference.h"
#include "kernels/cpu/quantized_tile_reference.h"
#include "numerics/int4.h"
#include "numerics/qparams.h"

namespace torchquant::kernels::reference {
namespace {

// Sum in 16 lanes, which the compiler keeps in registers; the lanes are added in order.
float dot(const float* a, const float* b, int64_t n) {
  constexpr int64_t kLanes = 16;
  float lanes[kLanes] = {};
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) {
    for (int64_t j = 0; j < kLanes; ++j) lanes[j] += a[i + j] * b[i + j];
  }
  for (; i < n; ++i) lanes[i % kLanes] += a[i] * b[i];
  float sum = 0.0f;
  for (float lane : lanes) sum += lane;
  return sum;
}

// Row `row` of a stored weight as int8 codes: in place for 8 bits, unpacked into `scratch` for 4.
const int8_t* row_codes(const StoredWeight& weight, int64_t row, int8_t* scratch) {
  if (weight.bits == 8) return static_cast<const int8_t*>(weight.data) + row * weight.columns;
  const auto* packed = static_cast<const uint8_t*>(weight.data) + row * numerics::int4_bytes(weight.columns);
  numerics::unpack_int4(packed, weight.columns, weight.quant_min, scratch);
  return scratch;
}

// Writes dequantized rows of one weight, keeping the scratch between rows.
class RowDequantizer {
 public:
  RowDequantizer(const StoredWeight& weight, const float* scale, const float* zero_point, int64_t group_size)
      : weight_(weight), scale_(scale), zero_point_(zero_point), group_size_(group_size), scratch_(weight.columns) {}

  void write(int64_t row, float* out) {
    const int8_t* codes = row_codes(weight_, row, scratch_.data());
    const int64_t groups = weight_.columns / group_size_;
    for (int64_t g = 0; g < groups; ++g) {
      const int64_t index = row * groups + g;
      const numerics::QParams qparams{scale_[index], 0.0f, zero_point_ != nullptr ? zero_point_[index] : 0.0f};
      for (int64_t i = g * group_size_; i < (g + 1) * group_size_; ++i) {
        out[i] = numerics::dequantize_value(codes[i], qparams);
      }
    }
  }

 private:
  const StoredWeight weight_;
  const float* scale_;
  const float* zero_point_;
  int64_t group_size_;
  std::vector<int8_t> scratch_;
};

}  // namespace

void unpack_int4(const StoredWeight& weight, IndexRange rows, int8_t* codes) {
  for (int64_t row = rows.begin; row < rows.end; ++row) row_codes(weight, row, codes + row * weight.columns);
}

void linear_weight_only(const LinearWeightOnlyArgs& args, IndexRange channels) {
  const int64_t depth = args.weight.columns;
  std::vector<float> weight(depth);
  RowDequantizer rows(args.weight, args.weight_scale, args.weight_zero_point, args.group_size);
  for (int64_t c = channels.begin; c < channels.end; ++c) {
    rows.write(c, weight.data());
    const float bias = args.bias != nullptr ? args.bias[c] : 0.0f;
    for (int64_t r = 0; r < args.rows; ++r) {
      const float v = dot(args.x + r * depth, weight.data(), depth) + bias;
      args.out[r * args.out_channels + c] = numerics::activate(v, args.activation);
    }
  }
}

void embedding(const EmbeddingArgs& args, IndexRange indices) {
  RowDequantizer rows(args.weight, args.weight_scale, args.weight_zero_point, args.group_size);
  for (int64_t i = indices.begin; i < indices.end; ++i) {
    rows.write(args.indices[i], args.out + i * args.weight.columns);
  }
}

}  // namespace torchquant::kernels::reference
