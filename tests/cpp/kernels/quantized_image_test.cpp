// Image kernels of every instruction set against plain loops: what stands where in a pitched buffer, and that nothing
// else is written.
#include <gtest/gtest.h>

#include <cstring>
#include <limits>
#include <string>
#include <vector>

#include "kernels/quantized_kernels.h"
#include "support/isas.h"
#include "support/pitched_image.h"
#include "support/rng.h"

namespace torchquant::kernels {
namespace {

using test::kUntouched;
using test::PitchedImage;
using test::Random;

constexpr QRange kUInt8Range{0.0f, 255.0f};

class QuantizedImage : public ::testing::TestWithParam<Isa> {
 protected:
  const QuantizedKernels& kernels() const { return quantized_kernels(GetParam()); }
};

FloatImageStrides nchw(int64_t channels, int64_t height, int64_t width) {
  return {channels * height * width, height * width, width, 1};
}

FloatImageStrides nhwc(int64_t channels, int64_t height, int64_t width) {
  return {channels * height * width, 1, width * channels, channels};
}

TEST_P(QuantizedImage, QuantizesEitherFormatIntoTheMiddleOfABuffer) {
  Random random(1);
  for (const int64_t channels : {1, 2, 3, 4, 16, 21, 40}) {
    for (const int64_t width : {1, 15, 16, 17, 64, 67}) {
      for (const bool channels_last : {false, true}) {
        const int64_t height = 3, batch = 2;
        const auto strides = channels_last ? nhwc(channels, height, width) : nchw(channels, height, width);
        std::vector<float> x(batch * channels * height * width);
        for (float& value : x) value = random.uniform(-9.0f, 9.0f);
        x[0] = std::numeric_limits<float>::quiet_NaN();
        x[x.size() / 2] = std::numeric_limits<float>::infinity();
        x[x.size() - 1] = -std::numeric_limits<float>::infinity();
        const auto qparams = numerics::make_qparams(0.05f, 100.0f, kUInt8Range);

        PitchedImage out(batch, height, width, channels, channels + 5, {1, 2, 3, 1});
        kernels().quantize_image({channels, x.data(), strides, qparams, kUInt8Range, out.origin(), out.layout()},
                                 {0, batch * height});
        fill_border(out.origin(), out.layout(), channels, out.border(), 100, {0, batch});

        PitchedImage want(batch, height, width, channels, channels + 5, {1, 2, 3, 1});
        want.for_each_stored([&](int64_t image, int64_t row, int64_t column, int64_t c, uint8_t& code) {
          const bool inside = row >= 0 && row < height && column >= 0 && column < width;
          if (!inside) {
            code = 100;
          } else {
            const float value =
                x[image * strides.image + c * strides.channel + row * strides.row + column * strides.column];
            code = static_cast<uint8_t>(numerics::quantize_value(value, qparams, kUInt8Range));
          }
        });
        ASSERT_EQ(out.bytes(), want.bytes())
            << channels << " channels, width " << width << (channels_last ? ", channels last" : "");
      }
    }
  }
}

TEST_P(QuantizedImage, DequantizesIntoEitherFormat) {
  Random random(2);
  for (const int64_t channels : {1, 3, 16, 21, 40}) {
    for (const int64_t width : {1, 15, 16, 17, 67}) {
      for (const bool channels_last : {false, true}) {
        const int64_t height = 2, batch = 2;
        PitchedImage x(batch, height, width, channels, channels + 3, {0, 1, 2, 0});
        x.randomize(random);
        const auto strides = channels_last ? nhwc(channels, height, width) : nchw(channels, height, width);
        const auto qparams = numerics::make_qparams(0.031f, 7.0f, kUInt8Range);
        std::vector<float> out(batch * channels * height * width + 16, -1.0f);
        std::vector<float> want = out;
        kernels().dequantize_image(
            {channels, x.origin(), ElementType::kUInt8, x.layout(), qparams, out.data(), strides}, {0, batch * height});
        x.for_each([&](int64_t image, int64_t row, int64_t column, int64_t c, uint8_t code) {
          want[image * strides.image + c * strides.channel + row * strides.row + column * strides.column] =
              numerics::dequantize_value(code, qparams);
        });
        ASSERT_EQ(out, want) << channels << " channels, width " << width << (channels_last ? ", channels last" : "");
      }
    }
  }
}

TEST_P(QuantizedImage, CopiesSideBySideMakeAConcatenation) {
  Random random(3);
  const int64_t batch = 2, height = 3, width = 5;
  PitchedImage joined(batch, height, width, 100, 100, {1, 1, 1, 1});
  PitchedImage want = joined;
  int64_t first = 0;
  for (const int64_t channels : {1, 31, 65, 3}) {
    PitchedImage part(batch, height, width, channels, channels, {0, 0, 0, 0});
    part.randomize(random);
    kernels().copy_image(
        {channels, part.origin(), part.layout(), nullptr, nullptr, joined.origin() + first, joined.layout()},
        {0, batch * height});
    part.for_each([&](int64_t image, int64_t row, int64_t column, int64_t c, uint8_t code) {
      want.at(image, row, column, first + c) = code;
    });
    first += channels;
  }
  EXPECT_EQ(joined.bytes(), want.bytes());
}

TEST_P(QuantizedImage, MapsOfRowsAndColumnsPickTheSource) {
  Random random(4);
  const int64_t batch = 2;
  PitchedImage x(batch, 3, 4, 5, 7, {0, 1, 0, 1});
  x.randomize(random);
  const std::vector<int64_t> rows = {2, 0, 0, 1, 2}, columns = {3, 3, 0};
  PitchedImage out(batch, 5, 3, 5, 6, {1, 0, 0, 0});
  PitchedImage want = out;
  kernels().copy_image({5, x.origin(), x.layout(), rows.data(), columns.data(), out.origin(), out.layout()},
                       {0, batch * 5});
  for (int64_t image = 0; image < batch; ++image) {
    for (int64_t row = 0; row < 5; ++row) {
      for (int64_t column = 0; column < 3; ++column) {
        for (int64_t c = 0; c < 5; ++c) {
          want.at(image, row, column, c) = x.at(image, rows[row], columns[column], c);
        }
      }
    }
  }
  EXPECT_EQ(out.bytes(), want.bytes());
}

TEST_P(QuantizedImage, ARangeOfRowsIsAllThatIsWritten) {
  Random random(5);
  const int64_t channels = 20, height = 4, width = 18;
  std::vector<float> x(channels * height * width);
  for (float& value : x) value = random.uniform(-2.0f, 2.0f);
  PitchedImage out(1, height, width, channels, channels, {1, 1, 1, 1});
  kernels().quantize_image({channels, x.data(), nchw(channels, height, width),
                            numerics::make_qparams(1.0f, 200.0f, kUInt8Range), kUInt8Range, out.origin(), out.layout()},
                           {1, 3});
  out.for_each_stored([&](int64_t, int64_t row, int64_t column, int64_t, uint8_t& code) {
    const bool inside = row >= 1 && row < 3 && column >= 0 && column < width;
    ASSERT_EQ(code != kUntouched, inside) << "row " << row << ", column " << column;
  });
}

INSTANTIATE_TEST_SUITE_P(Isa, QuantizedImage, ::testing::ValuesIn(available_isas()), test::isa_test_name);

}  // namespace
}  // namespace torchquant::kernels
