// A random integer convolution that the CUDA kernels, under emulation, and the reference both run. Used by
// cuda_gemm_test.cpp and cuda_conv_test.cpp.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <sstream>
#include <string>
#include <vector>

#include "kernels/cuda/integer_conv.h"
#include "kernels/integer_conv.h"
#include "numerics/int4.h"
#include "support/describe_conv.h"
#include "support/rng.h"

namespace torchquant::test {

using namespace kernels;
using kernels::cuda::ConvTile;

// Everything about a layer but its numbers.
struct CudaLayer {
  ConvSpec spec;
  int64_t batch = 1;
  int64_t height = 1;
  int64_t width = 1;
  ConvTile tile = ConvTile::kAuto;
  ElementType x_type = ElementType::kUInt8;
  int32_t x_zero_point = 114;
  bool residual = false;
  ElementType residual_type = ElementType::kUInt8;
  OutputSpec output{ElementType::kUInt8, 3.0f, {0.0f, 255.0f}, numerics::no_activation()};
  int32_t weight_bits = 8;
  int64_t misaligned = 0;         // bytes that x, residual and output lie behind a multiple of 16
  float largest = 1.0f;           // scales the multipliers: 1 fills the range of the codes, more saturates
  bool whole_multiplier = false;  // 0.5 for every channel, so that half of the values are ties
};

inline std::string describe(const CudaLayer& l) {
  std::ostringstream s;
  s << describe_shape(l) << ", tile " << static_cast<int>(l.tile) << ", x type " << static_cast<int>(l.x_type)
    << ", out type " << static_cast<int>(l.output.type) << ", residual " << l.residual << " of type "
    << static_cast<int>(l.residual_type) << ", activation " << static_cast<int>(l.output.activation.kind)
    << ", weight bits " << l.weight_bits << ", misaligned " << l.misaligned;
  return s.str();
}

// Bytes from a chosen distance behind a multiple of 16 on, with nothing behind the last, so that AddressSanitizer sees
// a byte too many.
class PlacedBytes {
 public:
  PlacedBytes(size_t count, int64_t distance) : distance_(static_cast<size_t>(distance)), bytes_(distance_ + count) {}
  uint8_t* data() { return bytes_.data() + distance_; }
  uint8_t* end() { return bytes_.data() + bytes_.size(); }

 private:
  size_t distance_;
  std::vector<uint8_t> bytes_;  // operator new aligns to 16
};

class CudaConvCase {
 public:
  CudaConvCase(const CudaLayer& layer, unsigned seed)
      : layer_(layer),
        random_(seed),
        out_height_(conv_output_size(layer.spec.height, layer.spec.transposed, layer.height)),
        out_width_(conv_output_size(layer.spec.width, layer.spec.transposed, layer.width)),
        x_(static_cast<size_t>(layer.batch * layer.height * layer.width * layer.spec.in_channels), layer.misaligned),
        residual_(elements(), layer.misaligned) {
    const int64_t depth = layer.spec.in_channels / layer.spec.groups * taps();
    const int lowest = layer.weight_bits == 4 ? -8 : -128;
    weight_.resize(static_cast<size_t>(layer.spec.out_channels * depth));
    for (int8_t& w : weight_) w = static_cast<int8_t>(random_.integer(lowest, -lowest - 1));
    for (uint8_t* x = x_.data(); x != x_.end(); ++x) *x = static_cast<uint8_t>(random_.integer(0, 255));
    for (uint8_t* r = residual_.data(); r != residual_.end(); ++r) *r = static_cast<uint8_t>(random_.integer(0, 255));
    const float spread =
        layer.largest * 128.0f / (46.0f * static_cast<float>(-lowest) * std::sqrt(static_cast<float>(depth)));
    for (int64_t o = 0; o < layer.spec.out_channels; ++o) {
      multiplier_.push_back(layer.whole_multiplier ? 0.5f : random_.uniform(-spread, spread));
      bias_.push_back(layer.whole_multiplier ? 0.0f : random_.uniform(0.0f, 200.0f) * layer.largest);
    }
  }

  int64_t out_pixels() const { return layer_.batch * out_height_ * out_width_; }

  std::vector<uint8_t> reference() {
    const ConvSpec& spec = layer_.spec;
    const auto packed =
        pack_conv(Isa::kReference, spec, {weight_.data(), {columns() * taps(), taps(), spec.width.kernel, 1}});
    const ImageLayout out = dense_image(out_height_, out_width_, spec.out_channels);
    ConvProblem problem{layer_.batch,  dense_image(layer_.height, layer_.width, spec.in_channels),
                        out,           std::nullopt,
                        layer_.x_type, layer_.x_zero_point,
                        epilogue(),    1};
    if (layer_.residual) problem.residual = out;
    const auto plan = plan_conv(packed, problem);
    std::vector<uint8_t> result(elements() * element_size());
    plan->run(x_.data(), result.data(), layer_.residual ? residual_.data() : nullptr, {0, plan->tasks()});
    return result;
  }

  std::vector<uint8_t> emulated() {
    const ConvSpec& spec = layer_.spec;
    std::vector<uint8_t> packed(static_cast<size_t>(cuda::packed_conv_bytes(spec)), 0xA5);
    EXPECT_EQ(cuda::pack_conv(spec, stored_weight(), packed.data(), nullptr), cudaSuccess);
    // Floats stay aligned to their size.
    const int64_t distance = element_size() == 4 ? layer_.misaligned / 4 * 4 : layer_.misaligned;
    PlacedBytes out(elements() * element_size(), distance);
    std::fill(out.data(), out.end(), uint8_t{0xA5});
    Epilogue fused = epilogue();
    if (layer_.residual) fused.residual.data = residual_.data();
    const cuda::IntegerConvArgs args{spec,       layer_.batch, layer_.height, layer_.width,        out_height_,
                                     out_width_, x_.data(),    layer_.x_type, layer_.x_zero_point, packed.data(),
                                     fused,      out.data(),   layer_.tile};
    EXPECT_EQ(cuda::integer_conv(args, nullptr), cudaSuccess);
    return {out.data(), out.end()};
  }

  void set_weights(int8_t value) { std::fill(weight_.begin(), weight_.end(), value); }
  void set_inputs(uint8_t value) { std::fill(x_.data(), x_.end(), value); }

 private:
  int64_t taps() const { return layer_.spec.height.kernel * layer_.spec.width.kernel; }
  int64_t columns() const {
    return (layer_.spec.transposed ? layer_.spec.out_channels : layer_.spec.in_channels) / layer_.spec.groups;
  }
  size_t elements() const { return static_cast<size_t>(out_pixels() * layer_.spec.out_channels); }
  size_t element_size() const { return layer_.output.type == ElementType::kFloat32 ? 4 : 1; }

  Epilogue epilogue() const {
    return {
        multiplier_.data(), bias_.data(), {nullptr, layer_.residual_type, 17, 0.61f * layer_.largest}, layer_.output};
  }

  cuda::StoredConvWeight stored_weight() {
    const int64_t row = columns() * taps();
    if (layer_.weight_bits == 8) {
      return {weight_.data(), 8, 0, {row, taps(), layer_.spec.width.kernel, 1}};
    }
    const int64_t row_bytes = numerics::int4_bytes(row);
    const int64_t rows = static_cast<int64_t>(weight_.size()) / row;
    nibbles_.assign(static_cast<size_t>(rows * row_bytes), 0);
    for (int64_t i = 0; i < rows; ++i) {
      numerics::pack_int4(weight_.data() + i * row, row, -8, nibbles_.data() + i * row_bytes);
    }
    return {nibbles_.data(), 4, -8, {row_bytes, taps(), layer_.spec.width.kernel, 1}};
  }

  CudaLayer layer_;
  Random random_;
  int64_t out_height_;
  int64_t out_width_;
  PlacedBytes x_;
  PlacedBytes residual_;
  std::vector<int8_t> weight_;
  std::vector<uint8_t> nibbles_;
  std::vector<float> multiplier_;
  std::vector<float> bias_;
};

// The emulated kernels give the reference's bytes.
inline void expect_agreement(CudaConvCase numbers, const CudaLayer& layer) {
  ASSERT_GT(numbers.out_pixels(), 0) << describe(layer);
  const auto expected = numbers.reference();
  const auto actual = numbers.emulated();
  ASSERT_EQ(actual.size(), expected.size());
  const auto differing = std::mismatch(actual.begin(), actual.end(), expected.begin());
  ASSERT_EQ(differing.first, actual.end())
      << "byte " << differing.first - actual.begin() << " is " << static_cast<int>(*differing.first) << ", not "
      << static_cast<int>(*differing.second) << ": " << describe(layer);
}

inline void expect_agreement(const CudaLayer& layer, unsigned seed = 1) {
  expect_agreement(CudaConvCase(layer, seed), layer);
}

inline CudaLayer linear_layer(int64_t rows, int64_t depth, int64_t channels) {
  CudaLayer layer{{depth, channels}};
  layer.width = rows;
  return layer;
}

}  // namespace torchquant::test
