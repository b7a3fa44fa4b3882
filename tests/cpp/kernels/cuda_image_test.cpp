// The CUDA kernels for pooling and linear resizing, run by the emulation, against the CPU reference: every byte of
// pitched images, around the widths of an access.
#include <gtest/gtest.h>

#include <vector>

#include "kernels/cuda/image.h"
#include "support/quantized_cases.h"
#include "support/same_bytes.h"

namespace torchquant::kernels {
namespace {

using test::element_size;
using test::expect_same_bytes;
using test::PitchedImage;
using test::Random;

const QuantizedKernels& reference() { return quantized_kernels(Isa::kReference); }

// An image and what it becomes. Pitches are elements, so the buffer of a float output is four times as large.
struct Images {
  Images(Random& random, int64_t channels_, int64_t batch_, int64_t height, int64_t width, int64_t gap)
      : channels(channels_),
        batch(batch_),
        type(test::random_code_type(random)),
        x(batch, height, width, channels, channels + gap, {1, 0, 1, 1}) {
    x.randomize(random);
  }

  PitchedImage output(int64_t height, int64_t width, int64_t gap) const {
    return PitchedImage(batch, height, width, channels, channels + gap, {1, 1, 0, 1});
  }

  int64_t channels;
  int64_t batch;
  ElementType type;
  PitchedImage x;
};

std::vector<int64_t> channel_counts() { return {1, 3, 4, 15, 16, 17, 20, 32, 65}; }

// run(args, out origin) by both.
template <typename Args, typename Reference, typename Tested>
void expect_same_image(Args args, PitchedImage& out, ElementType type, const Reference& by_reference,
                       const Tested& tested) {
  const int64_t size = element_size(type);
  const int64_t origin = (out.origin() - out.bytes().data()) * size;
  args.out_layout = out.layout();
  expect_same_bytes(
      static_cast<int64_t>(out.bytes().size()) * size, size == 4,
      [&](uint8_t* data) {
        args.out = data + origin;
        by_reference(args);
      },
      [&](uint8_t* data) {
        args.out = data + origin;
        ASSERT_EQ(tested(args), cudaSuccess);
      });
}

int64_t pooled_size(int64_t size, const MaxPoolAxis& axis) {
  return (size + 2 * axis.padding - axis.dilation * (axis.kernel - 1) - 1) / axis.stride + 1;
}

void expect_max_pool(Images& images, const MaxPoolAxis& height, const MaxPoolAxis& width, int32_t pad_value,
                     int64_t gap) {
  PitchedImage out =
      images.output(pooled_size(images.x.layout().height, height), pooled_size(images.x.layout().width, width), gap);
  const MaxPoolArgs args{images.channels, height,  width, images.x.origin(), images.x.layout(), images.type,
                         pad_value,       nullptr, {}};
  const int64_t pixels = images.batch * out.layout().height * out.layout().width;
  expect_same_image(
      args, out, images.type,
      [&](const MaxPoolArgs& a) {
        reference().max_pool(a, {0, pixels});
      },
      [&](const MaxPoolArgs& a) { return cuda::max_pool(a, images.batch, nullptr); });
}

TEST(CudaImage, MaxPool) {
  Random random(1);
  for (const int64_t channels : channel_counts()) {
    for (int round = 0; round < 6; ++round) {
      Images images(random, channels, 2, random.integer(5, 9), random.integer(5, 9), random.integer(0, 1) * 5);
      const auto axis = [&] {
        MaxPoolAxis drawn{random.integer(1, 3), random.integer(1, 3), 0, random.integer(1, 2)};
        drawn.padding = random.integer(0, drawn.kernel / 2);
        return drawn;
      };
      const MaxPoolAxis height = axis(), width = axis();
      ASSERT_NO_FATAL_FAILURE(
          expect_max_pool(images, height, width, test::random_zero_point(images.type, random), round % 2 * 2))
          << "channels " << channels;
    }
  }
}

OutputSpec random_pool_output(Random& random) {
  OutputSpec output = test::random_output(random);
  output.activation = numerics::no_activation();
  return output;
}

void expect_avg_pool(Images& images, const PoolAxis& rows, const PoolAxis& columns, int64_t divisor, Random& random,
                     int64_t gap) {
  std::vector<PoolWindow> row_windows, column_windows;
  for (int64_t o = 0; o < rows.out_size; ++o) row_windows.push_back(rows.window(o));
  for (int64_t o = 0; o < columns.out_size; ++o) column_windows.push_back(columns.window(o));
  PitchedImage out = images.output(rows.out_size, columns.out_size, gap);
  const AvgPoolArgs args{images.channels,
                         row_windows.data(),
                         column_windows.data(),
                         divisor,
                         images.x.origin(),
                         images.x.layout(),
                         images.type,
                         test::random_zero_point(images.type, random),
                         test::random_multiplier(random),
                         random_pool_output(random),
                         nullptr,
                         {}};
  const int64_t pixels = images.batch * rows.out_size * columns.out_size;
  expect_same_image(
      args, out, args.output.type,
      [&](const AvgPoolArgs& a) {
        reference().avg_pool(a, {0, pixels});
      },
      [&](AvgPoolArgs a) {
        a.rows = a.columns = nullptr;
        return cuda::avg_pool(a, rows, columns, images.batch, nullptr);
      });
}

TEST(CudaImage, AveragePool) {
  Random random(2);
  for (const int64_t channels : channel_counts()) {
    for (int round = 0; round < 6; ++round) {
      Images images(random, channels, 2, random.integer(4, 9), random.integer(4, 9), random.integer(0, 1) * 5);
      const auto axis = [&](int64_t size) {
        PoolAxis drawn{size, 0, random.integer(1, 4), random.integer(1, 3), 0, random.integer(0, 1) == 1};
        drawn.padding = random.integer(0, drawn.kernel / 2);
        drawn.out_size = (size + 2 * drawn.padding - drawn.kernel) / drawn.stride + 1;
        return drawn;
      };
      const PoolAxis rows = axis(images.x.layout().height), columns = axis(images.x.layout().width);
      ASSERT_NO_FATAL_FAILURE(
          expect_avg_pool(images, rows, columns, random.integer(0, 1) * 5, random, random.integer(0, 1) * 2))
          << "channels " << channels;
    }
  }
}

TEST(CudaImage, AdaptiveAveragePool) {
  Random random(3);
  for (const int64_t channels : channel_counts()) {
    for (const int64_t out_size : {1, 3, 7, 9}) {
      Images images(random, channels, 2, 7, 6, 0);
      ASSERT_NO_FATAL_FAILURE(expect_avg_pool(images, {7, out_size}, {6, out_size}, 0, random, 0))
          << "channels " << channels << ", output " << out_size;
    }
  }
}

void expect_resize(Images& images, int64_t out_height, int64_t out_width, bool align_corners, Random& random,
                   int64_t gap) {
  const auto axis = [&](int64_t in_size, int64_t out_size) {
    return ResizeAxis{in_size, out_size, numerics::resize_ratio(in_size, out_size, align_corners, 0.0), align_corners};
  };
  const auto rows = axis(images.x.layout().height, out_height), columns = axis(images.x.layout().width, out_width);
  std::vector<numerics::LinearTap> row_taps, column_taps;
  for (int64_t o = 0; o < out_height; ++o) row_taps.push_back(rows.tap(o));
  for (int64_t o = 0; o < out_width; ++o) column_taps.push_back(columns.tap(o));
  PitchedImage out = images.output(out_height, out_width, gap);
  const ResizeLinearArgs args{images.channels,
                              images.x.origin(),
                              images.type,
                              images.x.layout(),
                              test::random_zero_point(images.type, random),
                              row_taps.data(),
                              column_taps.data(),
                              test::random_multiplier(random),
                              random_pool_output(random),
                              nullptr,
                              {}};
  expect_same_image(
      args, out, args.output.type,
      [&](const ResizeLinearArgs& a) {
        reference().resize_linear(a, {0, images.batch * out_height});
      },
      [&](ResizeLinearArgs a) {
        a.rows = a.columns = nullptr;
        return cuda::resize_linear(a, rows, columns, images.batch, nullptr);
      });
}

TEST(CudaImage, LinearResize) {
  Random random(4);
  for (const int64_t channels : channel_counts()) {
    for (int round = 0; round < 6; ++round) {
      Images images(random, channels, 2, random.integer(1, 9), random.integer(1, 9), random.integer(0, 1) * 5);
      ASSERT_NO_FATAL_FAILURE(expect_resize(images, random.integer(1, 12), random.integer(1, 12), round % 2 == 0,
                                            random, random.integer(0, 1) * 2))
          << "channels " << channels;
    }
  }
}

// Dense images that are large enough for a thread to take 16 channels, which the others are not.
class CudaLargeImage : public ::testing::Test {
 protected:
  static constexpr int64_t kSize = 134, kChannels = 64, kPixels = kSize * kSize;

  // run(out) by both; the output is as large as the input.
  template <typename Reference, typename Tested>
  void expect_same(ElementType type, const Reference& by_reference, const Tested& tested) {
    expect_same_bytes(kPixels * kChannels * element_size(type), type == ElementType::kFloat32, by_reference,
                      [&](uint8_t* out) { ASSERT_EQ(tested(out), cudaSuccess); });
  }

  Random random{5};
  const std::vector<uint8_t> x = test::random_bytes(kPixels * kChannels, random);
  const ImageLayout layout = dense_image(kSize, kSize, kChannels);
};

TEST_F(CudaLargeImage, MaxPool) {
  const auto args = [&](uint8_t* out) {
    return MaxPoolArgs{kChannels, {3, 1, 1, 1}, {3, 1, 1, 1}, x.data(), layout, ElementType::kInt8, -3, out, layout};
  };
  expect_same(
      ElementType::kInt8,
      [&](uint8_t* out) {
        reference().max_pool(args(out), {0, kPixels});
      },
      [&](uint8_t* out) { return cuda::max_pool(args(out), 1, nullptr); });
}

TEST_F(CudaLargeImage, AveragePool) {
  const PoolAxis axis{kSize, kSize, 3, 1, 1, true};
  std::vector<PoolWindow> windows;
  for (int64_t o = 0; o < kSize; ++o) windows.push_back(axis.window(o));
  const OutputSpec output = random_pool_output(random);
  const auto args = [&](uint8_t* out) {
    return AvgPoolArgs{kChannels, windows.data(), windows.data(), 0,   x.data(), layout, ElementType::kInt8,
                       5,         0.11f,          output,         out, layout};
  };
  expect_same(
      output.type,
      [&](uint8_t* out) {
        reference().avg_pool(args(out), {0, kPixels});
      },
      [&](uint8_t* out) { return cuda::avg_pool(args(out), axis, axis, 1, nullptr); });
}

TEST_F(CudaLargeImage, LinearResize) {
  const ResizeAxis axis{kSize - 1, kSize, 0.9f, false};
  std::vector<numerics::LinearTap> taps;
  for (int64_t o = 0; o < kSize; ++o) taps.push_back(axis.tap(o));
  const OutputSpec output = random_pool_output(random);
  const auto args = [&](uint8_t* out) {
    return ResizeLinearArgs{kChannels, x.data(), ElementType::kUInt8, layout, 5, taps.data(), taps.data(), 0.3f, output,
                            out,       layout};
  };
  expect_same(
      output.type,
      [&](uint8_t* out) {
        reference().resize_linear(args(out), {0, kSize});
      },
      [&](uint8_t* out) { return cuda::resize_linear(args(out), axis, axis, 1, nullptr); });
}

TEST(CudaImage, AnImageBeyondTheIndexIsRefusedBeforeAnythingRuns) {
  constexpr int64_t kSide = int64_t{1} << 16;
  const auto max_pool = [](int64_t channels) {
    MaxPoolArgs args{};
    args.channels = channels;
    args.out_layout = dense_image(kSide, kSide / 2, channels);
    return cuda::max_pool(args, 1, nullptr);
  };
  EXPECT_EQ(cuda::image_pieces(kSide * kSide / 2, 4), cuda::kMaxImagePieces);
  EXPECT_EQ(max_pool(5), cudaErrorInvalidValue);
}

}  // namespace
}  // namespace torchquant::kernels
