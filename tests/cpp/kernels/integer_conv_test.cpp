// The integer convolution engine of every instruction set against the reference, bit by bit, at sizes around the edges
// of tiles and panels.
#include "kernels/integer_conv.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <limits>
#include <numeric>
#include <sstream>
#include <string>
#include <thread>
#include <tuple>
#include <vector>

#include "support/describe_conv.h"
#include "support/isas.h"
#include "support/rng.h"

namespace torchquant::kernels {
namespace {

using numerics::Activation;
using numerics::ActivationSpec;
using test::Random;

constexpr uint8_t kUntouched = 0xA5;

// Everything about a layer but its numbers.
struct Layer {
  ConvSpec spec;
  int64_t batch = 1;
  int64_t height = 1;
  int64_t width = 1;
  ElementType x_type = ElementType::kUInt8;
  int32_t x_zero_point = 114;
  bool residual = false;
  ElementType residual_type = ElementType::kUInt8;
  ElementType out_type = ElementType::kUInt8;
  float out_zero_point = 3.0f;
  numerics::QRange range = {0.0f, 255.0f};
  ActivationSpec activation = numerics::no_activation();
  float largest = 1.0f;        // scales the multipliers: 1 fills the range of the codes
  int64_t extra_channels = 0;  // of other data between the pixels of every image
  int64_t extra_border = 0;    // beyond what the kernel asks for
  int threads = 1;
};

std::string describe(const Layer& l) {
  std::ostringstream s;
  s << test::describe_shape(l) << ", x type " << static_cast<int>(l.x_type) << ", out type "
    << static_cast<int>(l.out_type) << ", residual " << l.residual << ", activation "
    << static_cast<int>(l.activation.kind) << ", pitch +" << l.extra_channels << ", border +" << l.extra_border
    << ", threads " << l.threads;
  return s.str();
}

int64_t element_size(ElementType type) { return type == ElementType::kFloat32 ? 4 : 1; }

// Images inside a buffer of random bytes.
struct Images {
  Images(int64_t batch, int64_t height, int64_t width, int64_t channels, int64_t size, const Layer& l, Border border)
      : size(size) {
    const int64_t pixel = channels + l.extra_channels;
    const int64_t row = (width + border.left + border.right) * pixel;
    const int64_t image = (height + border.top + border.bottom) * row;
    layout = {height, width, pixel, row, image};
    first = border.top * row + border.left * pixel + l.extra_channels / 2;
    bytes.assign((batch * image) * size, kUntouched);
    bytes.shrink_to_fit();
  }
  uint8_t* data() { return bytes.data() + first * size; }

  int64_t size;
  ImageLayout layout{};
  int64_t first = 0;
  std::vector<uint8_t> bytes;
};

// The numbers of a layer, the same for every engine.
class Case {
 public:
  Case(const Layer& layer, uint64_t seed) : layer_(layer), random_(static_cast<unsigned>(seed)) {
    const ConvSpec& spec = layer.spec;
    const int64_t inputs = spec.in_channels / spec.groups;
    const int64_t taps = spec.height.kernel * spec.width.kernel;
    weight_.resize(spec.out_channels * inputs * taps);
    for (int8_t& w : weight_) w = static_cast<int8_t>(random_.integer(-128, 127));
    x_.resize(layer.batch * layer.height * layer.width * spec.in_channels);
    for (uint8_t& x : x_) x = static_cast<uint8_t>(random_.integer(0, 255));
    out_height_ = conv_output_size(spec.height, spec.transposed, layer.height);
    out_width_ = conv_output_size(spec.width, spec.transposed, layer.width);
    residual_.resize(layer.batch * out_height_ * out_width_ * spec.out_channels);
    for (uint8_t& r : residual_) r = static_cast<uint8_t>(random_.integer(0, 255));
    const float spread = layer.largest * 128.0f / (6000.0f * std::sqrt(static_cast<float>(inputs * taps)));
    for (int64_t o = 0; o < spec.out_channels; ++o) {
      multiplier_.push_back(random_.uniform(-spread, spread));
      bias_.push_back(random_.uniform(0.0f, 200.0f) * layer.largest);
    }
  }

  // The output of plain loops, for layers from uint8 to uint8 without residual and activation: adds every input's
  // contribution where it lands (transposed) or comes from (forward), scatter and gather in one loop.
  std::vector<uint8_t> plain() const {
    const ConvSpec& spec = layer_.spec;
    std::vector<int32_t> acc(out_pixels() * spec.out_channels, 0);
    const ConvAxisSpec& h = spec.height;
    const ConvAxisSpec& w = spec.width;
    // "from" walks the side that strides: the output of a forward convolution, the input of a transposed one.
    const int64_t from_h = spec.transposed ? layer_.height : out_height_;
    const int64_t from_w = spec.transposed ? layer_.width : out_width_;
    const int64_t to_h = spec.transposed ? out_height_ : layer_.height;
    const int64_t to_w = spec.transposed ? out_width_ : layer_.width;
    for (int64_t n = 0; n < layer_.batch; ++n) {
      for (int64_t i = 0; i < from_h * from_w * h.kernel * w.kernel; ++i) {
        const int64_t kx = i % w.kernel;
        const int64_t ky = i / w.kernel % h.kernel;
        const int64_t from_x = i / (w.kernel * h.kernel) % from_w;
        const int64_t from_y = i / (w.kernel * h.kernel) / from_w;
        const int64_t to_y = from_y * h.stride - h.padding + ky * h.dilation;
        const int64_t to_x = from_x * w.stride - w.padding + kx * w.dilation;
        if (to_y < 0 || to_y >= to_h || to_x < 0 || to_x >= to_w) continue;
        const int64_t from = (n * from_h + from_y) * from_w + from_x;
        const int64_t to = (n * to_h + to_y) * to_w + to_x;
        add_tap(acc.data() + (spec.transposed ? to : from) * spec.out_channels,
                x_.data() + (spec.transposed ? from : to) * spec.in_channels, ky, kx);
      }
    }
    std::vector<uint8_t> codes(acc.size());
    for (size_t i = 0; i < acc.size(); ++i) {
      const size_t c = i % spec.out_channels;
      const float v = numerics::scale_accumulator(acc[i], multiplier_[c], bias_[c]);
      codes[i] = static_cast<uint8_t>(numerics::output_code(v, layer_.out_zero_point, layer_.range));
    }
    return codes;
  }

  int64_t out_pixels() const { return layer_.batch * out_height_ * out_width_; }

  // Output elements as dense bytes, after checking that nothing else was written.
  std::vector<uint8_t> run(Isa isa, const std::vector<int64_t>& order_seed = {}) {
    const ConvSpec& spec = layer_.spec;
    const auto packed = pack_conv(isa, spec, weight_view());
    Images out(layer_.batch, out_height_, out_width_, spec.out_channels, element_size(layer_.out_type), layer_,
               extra_border());
    Images residual(layer_.batch, out_height_, out_width_, spec.out_channels, 1, layer_, extra_border());
    fill(residual, residual_, spec.out_channels);
    // The border depends on the plan, and the plan on the border's pitches.
    Images x(layer_.batch, layer_.height, layer_.width, spec.in_channels, 1, layer_, {});
    const Border needed = plan(packed, x, out, residual)->input_border();
    const Border border{needed.top + layer_.extra_border, needed.bottom + layer_.extra_border,
                        needed.left + layer_.extra_border, needed.right + layer_.extra_border, needed.tail_bytes};
    x = Images(layer_.batch, layer_.height, layer_.width, spec.in_channels, 1, layer_, border);
    std::fill(x.bytes.begin(), x.bytes.end(), static_cast<uint8_t>(layer_.x_zero_point));
    x.bytes.resize(x.bytes.size() + border.tail_bytes, kUntouched);
    fill(x, x_, spec.in_channels);
    const auto made = plan(packed, x, out, residual);
    run_tasks(*made, x.data(), out.data(), layer_.residual ? residual.data() : nullptr, order_seed);
    return collect(out);
  }

 private:
  Border extra_border() const {
    return {layer_.extra_border, layer_.extra_border, layer_.extra_border, layer_.extra_border, 0};
  }

  ConvWeight weight_view() const {
    const ConvSpec& spec = layer_.spec;
    const int64_t taps = spec.height.kernel * spec.width.kernel;
    const int64_t columns = (spec.transposed ? spec.out_channels : spec.in_channels) / spec.groups;
    return {weight_.data(), {columns * taps, taps, spec.width.kernel, 1}};
  }

  std::shared_ptr<const ConvPlan> plan(const std::shared_ptr<const PackedConv>& packed, const Images& x,
                                       const Images& out, const Images& residual) const {
    ConvProblem problem{layer_.batch,
                        x.layout,
                        out.layout,
                        std::nullopt,
                        layer_.x_type,
                        layer_.x_zero_point,
                        {multiplier_.data(),
                         bias_.data(),
                         {nullptr, layer_.residual_type, 17, 0.61f * layer_.largest},
                         {layer_.out_type, layer_.out_zero_point, layer_.range, layer_.activation}},
                        layer_.threads};
    if (layer_.residual) problem.residual = residual.layout;
    return plan_conv(packed, problem);
  }

  void add_tap(int32_t* acc, const uint8_t* x, int64_t ky, int64_t kx) const {
    const ConvSpec& spec = layer_.spec;
    const int64_t group_in = spec.in_channels / spec.groups;
    const int64_t group_out = spec.out_channels / spec.groups;
    for (int64_t o = 0; o < spec.out_channels; ++o) {
      for (int64_t i = 0; i < group_in; ++i) {
        const int64_t in_channel = o / group_out * group_in + i;
        const int64_t row = spec.transposed ? in_channel : o;
        const int64_t column = spec.transposed ? o % group_out : i;
        const int64_t columns = spec.transposed ? group_out : group_in;
        acc[o] += (x[in_channel] - layer_.x_zero_point) *
                  weight_[((row * columns + column) * spec.height.kernel + ky) * spec.width.kernel + kx];
      }
    }
  }

  static void run_tasks(const ConvPlan& plan, const uint8_t* x, uint8_t* out, const uint8_t* residual,
                        const std::vector<int64_t>& order_seed) {
    std::vector<int64_t> order(plan.tasks());
    std::iota(order.begin(), order.end(), 0);
    if (order_seed.empty()) return plan.run(x, out, residual, {0, plan.tasks()});
    Random random(static_cast<unsigned>(order_seed[0]));
    for (size_t i = order.size(); i > 1; --i)
      std::swap(order[i - 1], order[random.integer(0, static_cast<int>(i) - 1)]);
    std::vector<std::thread> threads;
    for (size_t t = 0; t < 3; ++t) {
      threads.emplace_back([&, t] {
        for (size_t i = t; i < order.size(); i += 3) plan.run(x, out, residual, {order[i], order[i] + 1});
      });
    }
    for (std::thread& thread : threads) thread.join();
  }

  void fill(Images& images, const std::vector<uint8_t>& values, int64_t channels) const {
    int64_t i = 0;
    for_each_pixel(images, [&](int64_t offset) {
      std::copy_n(values.data() + i, channels, images.data() + offset);
      i += channels;
    });
  }

  template <typename Fn>
  void for_each_pixel(const Images& images, Fn&& fn) const {
    for (int64_t n = 0; n < layer_.batch; ++n) {
      for (int64_t y = 0; y < images.layout.height; ++y) {
        for (int64_t c = 0; c < images.layout.width; ++c) fn(images.layout.offset(n, y, c));
      }
    }
  }

  std::vector<uint8_t> collect(Images& images) const {
    const int64_t bytes = layer_.spec.out_channels * images.size;
    std::vector<uint8_t> dense;
    for_each_pixel(images, [&](int64_t offset) {
      uint8_t* pixel = images.data() + offset * images.size;
      dense.insert(dense.end(), pixel, pixel + bytes);
      std::fill_n(pixel, bytes, kUntouched);
    });
    const auto stray =
        std::count_if(images.bytes.begin(), images.bytes.end(), [](uint8_t b) { return b != kUntouched; });
    EXPECT_EQ(stray, 0) << "bytes outside the output were written: " << describe(layer_);
    return dense;
  }

  Layer layer_;
  Random random_;
  int64_t out_height_ = 0;
  int64_t out_width_ = 0;
  std::vector<int8_t> weight_;
  std::vector<uint8_t> x_;
  std::vector<uint8_t> residual_;
  std::vector<float> multiplier_;
  std::vector<float> bias_;
};

class IntegerConv : public ::testing::TestWithParam<Isa> {
 protected:
  void agrees(const Layer& layer, const std::vector<int64_t>& order_seed = {}) {
    Case numbers(layer, ++seed_);
    ASSERT_GT(numbers.out_pixels(), 0) << describe(layer);
    const auto expected = numbers.run(Isa::kReference);
    const auto actual = numbers.run(GetParam(), order_seed);
    ASSERT_EQ(actual.size(), expected.size());
    for (size_t i = 0; i < actual.size(); ++i) {
      ASSERT_EQ(actual[i], expected[i]) << "byte " << i << " of " << actual.size() << ": " << describe(layer);
    }
    spread_ = {*std::min_element(expected.begin(), expected.end()),
               *std::max_element(expected.begin(), expected.end())};
  }

  uint64_t seed_ = 0;
  std::pair<int, int> spread_;  // smallest and largest expected byte of the last layer
};

ConvAxisSpec axis(int64_t kernel, int64_t stride = 1, int64_t padding = 0, int64_t dilation = 1, int64_t extra = 0) {
  return {kernel, stride, padding, dilation, extra};
}

Layer linear(int64_t rows, int64_t depth, int64_t channels) {
  Layer layer{{depth, channels}};
  layer.width = rows;
  return layer;
}

ActivationSpec clamp(float lo, float hi) { return {Activation::kClamp, {lo, hi}, 1.0f, 1.0f}; }

ActivationSpec real(Activation kind, float scale) { return {kind, {0.0f, 0.0f}, scale, 1.0f / scale}; }

// A random axis and an input size at which it has outputs.
std::pair<ConvAxisSpec, int64_t> random_axis(bool transposed, Random& random) {
  for (;;) {
    ConvAxisSpec drawn = axis(random.integer(1, 4), random.integer(1, 3), random.integer(0, 3), random.integer(1, 2));
    if (transposed) drawn.output_padding = random.integer(0, std::max(drawn.stride, drawn.dilation) - 1);
    const int64_t size = random.integer(1, 9);
    if (conv_output_size(drawn, transposed, size) >= 1) return {drawn, size};
  }
}

TEST_P(IntegerConv, RandomGeometriesGiveTheBytesOfPlainLoops) {
  Random random(3);
  for (int round = 0; round < 400; ++round) {
    const bool transposed = random.integer(0, 1) == 1;
    const int64_t groups = random.integer(1, 4);
    const bool depthwise = random.integer(0, 2) == 0;
    Layer layer{{groups * (depthwise ? 1 : random.integer(1, 5)), groups * (depthwise ? 1 : random.integer(1, 6)),
                 groups, transposed}};
    layer.batch = random.integer(1, 2);
    std::tie(layer.spec.height, layer.height) = random_axis(transposed, random);
    std::tie(layer.spec.width, layer.width) = random_axis(transposed, random);
    Case numbers(layer, round);
    ASSERT_EQ(numbers.run(GetParam()), numbers.plain()) << "round " << round << ": " << describe(layer);
  }
}

// What a dynamic linear layer does: float outputs, each row with a scale of its own.
TEST_P(IntegerConv, RowScales) {
  Random random(5);
  for (const auto& [rows, activation] : {std::tuple{1, Activation::kNone},
                                         {2, Activation::kSilu},
                                         {13, Activation::kNone},
                                         {14, Activation::kNone},
                                         {15, Activation::kSilu},
                                         {40, Activation::kNone}}) {
    const int64_t depth = 37;
    const int64_t channels = 45;
    std::vector<int8_t> weight(channels * depth);
    for (int8_t& w : weight) w = static_cast<int8_t>(random.integer(-127, 127));
    std::vector<uint8_t> x(rows * depth + 8);
    for (uint8_t& v : x) v = static_cast<uint8_t>(random.integer(1, 255));
    std::vector<float> multiplier(channels), bias(channels), row_scale(rows);
    for (auto* values : {&multiplier, &bias, &row_scale}) {
      for (float& v : *values) v = random.uniform(0.01f, 2.0f);
    }
    const auto packed = pack_conv(GetParam(), {depth, channels}, {weight.data(), {depth, 1, 1, 1}});
    const auto plan = plan_conv(
        packed, {1,
                 dense_image(1, rows, depth),
                 dense_image(1, rows, channels),
                 std::nullopt,
                 ElementType::kUInt8,
                 128,
                 {multiplier.data(), bias.data(), {}, {ElementType::kFloat32, 0.0f, {}, real(activation, 1.0f)}},
                 2});
    std::vector<float> out(rows * channels);
    plan->run({x.data(), out.data(), nullptr, row_scale.data()}, {0, plan->tasks()});
    for (int64_t r = 0; r < rows; ++r) {
      for (int64_t c = 0; c < channels; ++c) {
        int32_t acc = 0;
        for (int64_t k = 0; k < depth; ++k) acc += (x[r * depth + k] - 128) * weight[c * depth + k];
        const float v = numerics::scale_accumulator(acc, row_scale[r] * multiplier[c], bias[c]);
        ASSERT_EQ(out[r * channels + c], activation == Activation::kNone ? v : numerics::silu_f32(v))
            << "row " << r << " of " << rows << ", channel " << c;
      }
    }
  }
}

TEST_P(IntegerConv, EveryNumberOfPixels) {
  for (int64_t rows = 1; rows <= 30; ++rows) agrees(linear(rows, 20, 36));
}

TEST_P(IntegerConv, ChannelsAroundStepsAndPanels) {
  for (const int64_t depth : {1, 3, 4, 5, 15, 16, 17, 31, 32, 33, 63, 64, 65, 130}) {
    for (const int64_t channels : {1, 15, 16, 17, 31, 32, 33, 64, 65, 100}) agrees(linear(15, depth, channels));
  }
}

TEST_P(IntegerConv, OutputFillsItsRange) {
  agrees(linear(50, 64, 64));
  EXPECT_EQ(spread_.first, 0);
  EXPECT_EQ(spread_.second, 255);
}

TEST_P(IntegerConv, KernelsStridesPaddingsDilations) {
  for (const int64_t kernel : {1, 2, 3, 5, 7}) {
    for (const int64_t stride : {1, 2, 3}) {
      for (const int64_t dilation : {1, 2}) {
        for (const int64_t channels : {3, 4, 20}) {
          Layer layer{{channels, 40, 1, false, axis(kernel, stride, kernel / 2, dilation),
                       axis(kernel, stride, kernel / 2, dilation)}};
          layer.height = 15;
          layer.width = 17;
          agrees(layer);
        }
      }
    }
  }
}

TEST_P(IntegerConv, RowsNarrowerThanATile) {
  for (int64_t width = 1; width <= 16; ++width) {
    Layer layer{{8, 32, 1, false, axis(3, 1, 1), axis(3, 1, 1)}};
    layer.batch = 2;
    layer.height = 5;
    layer.width = width;
    agrees(layer);
  }
}

TEST_P(IntegerConv, AxesThatDiffer) {
  Layer layer{{12, 33, 1, false, axis(1, 2, 0), axis(5, 1, 3, 2)}};
  layer.height = 9;
  layer.width = 21;
  agrees(layer);
  layer.spec.height = axis(7, 3, 6, 1);
  layer.spec.width = axis(1);
  agrees(layer);
}

TEST_P(IntegerConv, Batches) {
  for (const int64_t side : {1, 3, 7, 14, 15}) {
    for (const int64_t kernel : {1, 3}) {
      Layer layer{{16, 64, 1, false, axis(kernel, 1, kernel / 2), axis(kernel, 1, kernel / 2)}};
      layer.batch = 3;
      layer.height = layer.width = side;
      agrees(layer);
    }
  }
}

TEST_P(IntegerConv, Groups) {
  for (const auto& [in, out, groups] : {std::tuple{8, 8, 2},
                                        {32, 32, 8},
                                        {64, 64, 2},
                                        {64, 128, 4},
                                        {12, 6, 3},
                                        {96, 96, 4},
                                        {128, 128, 32},
                                        {48, 48, 6},
                                        {40, 80, 5},
                                        {256, 256, 16}}) {
    for (const int64_t stride : {1, 2}) {
      Layer layer{{in, out, groups, false, axis(3, stride, 1), axis(3, stride, 1)}};
      layer.height = 9;
      layer.width = 10;
      agrees(layer);
    }
  }
}

TEST_P(IntegerConv, Depthwise) {
  for (const int64_t channels : {1, 3, 8, 16, 31, 32, 33, 64, 65, 96, 144}) {
    for (const auto& [kernel, stride, dilation] :
         {std::tuple{3, 1, 1}, {3, 2, 1}, {5, 1, 1}, {5, 2, 1}, {7, 1, 1}, {3, 1, 2}, {2, 1, 1}, {4, 3, 1}}) {
      Layer layer{{channels, channels, channels, false, axis(kernel, stride, kernel / 2, dilation),
                   axis(kernel, stride, kernel / 2, dilation)}};
      layer.height = 8;
      layer.width = 13;
      layer.batch = 2;
      agrees(layer);
    }
  }
}

TEST_P(IntegerConv, DepthwiseWithMoreOutputs) {
  Layer layer{{24, 48, 24, false, axis(3, 1, 1), axis(3, 1, 1)}};
  layer.height = layer.width = 6;
  agrees(layer);
}

TEST_P(IntegerConv, OneDimensional) {
  for (const int64_t groups : {1, 4, 32}) {
    Layer layer{{32, 32, groups, false, axis(1), axis(9, 2, 4)}};
    layer.width = 67;
    agrees(layer);
  }
}

TEST_P(IntegerConv, Transposed) {
  for (const auto& [kernel, stride, padding, dilation, extra] : {std::tuple{2, 2, 0, 1, 0},
                                                                 {4, 2, 1, 1, 0},
                                                                 {3, 2, 1, 1, 1},
                                                                 {3, 1, 1, 1, 0},
                                                                 {1, 3, 0, 1, 2},
                                                                 {3, 3, 0, 2, 1},
                                                                 {5, 2, 4, 1, 0}}) {
    for (const int64_t groups : {1, 4}) {
      Layer layer{{20, 36, groups, true, axis(kernel, stride, padding, dilation, extra),
                   axis(kernel, stride, padding, dilation, extra)}};
      layer.batch = 2;
      layer.height = 6;
      layer.width = 8;
      agrees(layer);
    }
  }
  Layer depthwise{{16, 16, 16, true, axis(3, 2, 1, 1, 1), axis(3, 2, 1, 1, 1)}};
  depthwise.height = depthwise.width = 5;
  agrees(depthwise);
}

TEST_P(IntegerConv, SignedTypesAndZeroPoints) {
  for (const ElementType x_type : {ElementType::kUInt8, ElementType::kInt8}) {
    for (const ElementType out_type : {ElementType::kUInt8, ElementType::kInt8, ElementType::kFloat32}) {
      for (const int edge : {0, 1}) {
        for (const int64_t groups : {1, 64}) {
          Layer layer{{64, 64, groups, false, axis(3, 1, 1), axis(3, 1, 1)}};
          layer.height = layer.width = 9;
          layer.x_type = x_type;
          layer.out_type = out_type;
          const bool is_signed = x_type == ElementType::kInt8;
          layer.x_zero_point = is_signed ? (edge ? 127 : -128) : (edge ? 255 : 0);
          layer.out_zero_point = out_type == ElementType::kInt8 ? (edge ? 127.0f : -128.0f) : (edge ? 255.0f : 0.0f);
          layer.range =
              out_type == ElementType::kInt8 ? numerics::QRange{-128.0f, 127.0f} : numerics::QRange{0.0f, 255.0f};
          agrees(layer);
          layer.residual = true;
          layer.residual_type = x_type;
          agrees(layer);
        }
      }
    }
  }
}

TEST_P(IntegerConv, NarrowRanges) {
  Layer layer = linear(20, 64, 40);
  layer.range = {10.0f, 200.0f};
  agrees(layer);
  EXPECT_EQ(spread_, (std::pair{10, 200}));
  layer.spec.out_channels = 32;
  layer.out_type = ElementType::kInt8;
  layer.range = {-63.0f, 5.0f};
  layer.out_zero_point = -60.0f;
  agrees(layer);
}

TEST_P(IntegerConv, Residual) {
  for (const int64_t rows : {1, 13, 14, 27}) {
    for (const int64_t channels : {32, 40, 64}) {
      Layer layer = linear(rows, 24, channels);
      layer.residual = true;
      agrees(layer);
      layer.residual_type = ElementType::kInt8;
      agrees(layer);
    }
  }
}

TEST_P(IntegerConv, EveryActivation) {
  std::vector<ActivationSpec> activations = {clamp(0.0f, std::numeric_limits<float>::infinity()), clamp(0.0f, 60.3f),
                                             clamp(-20.5f, 90.5f), clamp(0.5f, 1.5f), clamp(400.0f, 500.0f)};
  for (const Activation kind : {Activation::kHardswish, Activation::kHardsigmoid, Activation::kSilu, Activation::kGelu,
                                Activation::kGeluTanh, Activation::kSigmoid, Activation::kTanh}) {
    for (const float scale : {0.01f, 0.07f}) activations.push_back(real(kind, scale));
  }
  for (const ActivationSpec& activation : activations) {
    for (const ElementType type : {ElementType::kUInt8, ElementType::kInt8, ElementType::kFloat32}) {
      for (const bool residual : {false, true}) {
        for (const int64_t groups : {1, 64}) {
          Layer layer{{64, 64, groups, false, axis(1), axis(3, 1, 1)}};
          layer.width = 29;
          layer.activation = activation;
          layer.out_type = type;
          layer.residual = residual;
          if (type == ElementType::kInt8) layer.range = {-128.0f, 127.0f};
          agrees(layer);
        }
      }
    }
  }
}

// Values beyond int32, where a conversion would overflow, still saturate.
TEST_P(IntegerConv, ValuesBeyondInt32Saturate) {
  for (const float largest : {1e6f, 1e8f, 1e12f, 1e30f}) {
    for (const int64_t groups : {1, 32}) {
      Layer layer{{32, 64, groups == 1 ? 1 : 32, false, axis(1), axis(3, 1, 1)}};
      if (groups == 32) layer.spec.out_channels = 32;
      layer.width = 20;
      layer.largest = largest;
      agrees(layer);
      layer.residual = true;
      agrees(layer);
    }
  }
}

// acc * 0.5 + k/2 lands on ties; the zero point is odd, so that adding it before rounding would show.
TEST_P(IntegerConv, TiesRoundToEven) {
  for (const Isa isa : {GetParam()}) {
    const int8_t weight[32] = {1, -1, 1, -1, 1, -1, 1, -1, 1, -1, 1, -1, 1, -1, 1, -1,
                               1, -1, 1, -1, 1, -1, 1, -1, 1, -1, 1, -1, 1, -1, 1, -1};
    std::vector<float> multiplier(32, 0.5f);
    std::vector<float> bias(32, 0.0f);
    std::vector<uint8_t> x(256);
    std::iota(x.begin(), x.end(), 0);
    const auto packed = pack_conv(isa, {1, 32}, {weight, {1, 1, 1, 1}});
    const ConvProblem problem{
        1,
        dense_image(1, 256, 1),
        dense_image(1, 256, 32),
        std::nullopt,
        ElementType::kUInt8,
        128,
        {multiplier.data(), bias.data(), {}, {ElementType::kUInt8, 101.0f, {0.0f, 255.0f}, numerics::no_activation()}},
        1};
    const auto plan = plan_conv(packed, problem);
    x.resize(256 + plan->input_border().tail_bytes);
    std::vector<uint8_t> out(256 * 32);
    plan->run(x.data(), out.data(), nullptr, {0, plan->tasks()});
    for (int i = 0; i < 256; ++i) {
      for (int c = 0; c < 32; ++c) {
        const double v = (i - 128) * static_cast<double>(weight[c]) * 0.5;
        ASSERT_EQ(out[i * 32 + c], static_cast<uint8_t>(std::nearbyint(v) + 101)) << "code " << i << ", channel " << c;
      }
    }
  }
}

TEST_P(IntegerConv, PitchedAndPaddedBuffers) {
  for (const int64_t extra_channels : {0, 5, 32}) {
    for (const int64_t extra_border : {0, 1, 3}) {
      for (const auto& [channels, groups, kernel, stride] :
           {std::tuple{3, 1, 7, 2}, {20, 1, 3, 1}, {64, 1, 1, 1}, {64, 64, 3, 1}, {32, 4, 3, 2}}) {
        Layer layer{{channels, 64, groups, false, axis(kernel, stride, kernel / 2), axis(kernel, stride, kernel / 2)}};
        layer.batch = 2;
        layer.height = 7;
        layer.width = 16;
        layer.residual = true;
        layer.extra_channels = extra_channels;
        layer.extra_border = extra_border;
        agrees(layer);
      }
    }
  }
}

TEST_P(IntegerConv, TasksInAnyOrderOnSeveralThreads) {
  for (const int threads : {2, 3, 8}) {
    for (const auto& [side, channels, groups] : {std::tuple{28, 64, 1}, {7, 256, 1}, {30, 128, 128}, {14, 128, 4}}) {
      Layer layer{{channels, channels, groups, false, axis(3, 1, 1), axis(3, 1, 1)}};
      layer.batch = 2;
      layer.height = layer.width = side;
      layer.threads = threads;
      agrees(layer, {threads + side});
    }
    Layer layer = linear(3, 512, 1000);
    layer.threads = threads;
    agrees(layer, {threads});
  }
}

// Pixels a multiple of 4096 bytes apart, which share one set of the first-level cache and get tiles of their own size.
TEST_P(IntegerConv, PixelsInOneSetOfTheCache) {
  for (const int64_t rows : {1, 5, 6, 7, 8, 12, 13, 14, 15, 29}) {
    agrees(linear(rows, 4096, 33));
    Layer pitched = linear(rows, 100, 36);
    pitched.extra_channels = 4096 - 100;
    pitched.residual = true;
    agrees(pitched);
  }
  Layer strided{{2048, 40, 1, false, axis(1, 2), axis(1, 2)}};
  strided.height = strided.width = 9;
  agrees(strided);
}

// Images larger than the second-level cache of most processors.
TEST_P(IntegerConv, ImagesLargerThanACache) {
  for (const int64_t groups : {1, 256}) {
    Layer layer{{groups == 1 ? 16 : 256, 256, groups, false, axis(1), axis(1)}};
    layer.height = layer.width = 60;
    agrees(layer);
    layer.residual = true;
    agrees(layer);
  }
}

TEST_P(IntegerConv, ExtremeOperandsAreExact) {
  // Every product is 255 * -128 or 127 * 255: what saturating int16 sums would lose.
  const int64_t depth = 512;
  std::vector<int8_t> weight(64 * depth);
  for (int64_t o = 0; o < 64; ++o)
    std::fill_n(weight.begin() + o * depth, depth, static_cast<int8_t>(o % 2 ? 127 : -128));
  const std::vector<float> multiplier(64, 1.0f);
  const std::vector<float> bias(64, 0.0f);
  const std::vector<uint8_t> x(3 * depth, 255);
  const auto packed = pack_conv(GetParam(), {depth, 64}, {weight.data(), {depth, 1, 1, 1}});
  const auto plan = plan_conv(
      packed, {1,
               dense_image(1, 3, depth),
               dense_image(1, 3, 64),
               std::nullopt,
               ElementType::kUInt8,
               0,
               {multiplier.data(), bias.data(), {}, {ElementType::kFloat32, 0.0f, {}, numerics::no_activation()}},
               1});
  std::vector<float> out(3 * 64);
  plan->run(x.data(), out.data(), nullptr, {0, plan->tasks()});
  for (int64_t i = 0; i < 3 * 64; ++i) {
    EXPECT_EQ(out[i], static_cast<float>(depth * 255 * (i % 2 ? 127 : -128)));
  }
}

INSTANTIATE_TEST_SUITE_P(Isa, IntegerConv, ::testing::ValuesIn(available_isas()), test::isa_test_name);

}  // namespace
}  // namespace torchquant::kernels
