// Every instruction set gives the reference's bytes for the integer kernels that are not matrix products: at sizes
// around its vectors, with ties, saturation, NaN, all zero points and pitched images, and nothing is written beside the
// output.
#include <gtest/gtest.h>

#include <cstring>
#include <functional>
#include <string>
#include <vector>

#include "kernels/quantized_kernels.h"
#include "support/isas.h"
#include "support/pitched_image.h"
#include "support/quantized_cases.h"
#include "support/rng.h"
#include "support/sizes.h"

namespace torchquant::kernels {
namespace {

using test::element_size;
using test::kUntouched;
using test::PitchedImage;
using test::Random;
using test::random_bytes;
using test::random_code_type;
using test::random_multiplier;
using test::random_operand;
using test::random_output;
using test::random_zero_point;

class QuantizedAgreement : public ::testing::TestWithParam<Isa> {
 protected:
  // run(table, out) on both tables; NaN may differ in its payload.
  void expect_agreement(int64_t bytes, bool floats, const std::function<void(const QuantizedKernels&, uint8_t*)>& run) {
    std::vector<uint8_t> want(bytes + 64, kUntouched), got(bytes + 64, kUntouched);
    run(quantized_kernels(Isa::kReference), want.data());
    run(quantized_kernels(GetParam()), got.data());
    if (want == got) return;
    const int64_t size = floats ? 4 : 1;
    for (int64_t i = 0; i + size <= bytes + 64; i += size) {
      float a = 0.0f, b = 0.0f;
      if (floats) {
        memcpy(&a, &want[i], sizeof(a));
        memcpy(&b, &got[i], sizeof(b));
        if (a != a && b != b) continue;
      }
      ASSERT_EQ(memcmp(&want[i], &got[i], size), 0)
          << "element " << i / size << " of " << bytes / size << ": reference " << int{want[i]} << " (" << a
          << "), got " << int{got[i]} << " (" << b << ")";
    }
  }
};

TEST_P(QuantizedAgreement, AddAndMulOnEveryLength) {
  Random random(1);
  for (int round = 0; round < 12; ++round) {
    for (const int64_t n : test::run_lengths()) {
      const auto a = random_bytes(n + 3, random), b = random_bytes(n + 3, random);
      AddArgs add{random_operand(a, random), random_operand(b, random), random_multiplier(random),
                  random_multiplier(random), random_output(random),     nullptr};
      MulArgs mul{add.a, add.b, random_multiplier(random), random_output(random), nullptr};
      ASSERT_NO_FATAL_FAILURE(expect_agreement((n + 3) * element_size(add.output.type),
                                               add.output.type == ElementType::kFloat32,
                                               [&](const QuantizedKernels& table, uint8_t* out) {
                                                 table.add((add.out = out, add), {3, n + 3});
                                               }));
      ASSERT_NO_FATAL_FAILURE(expect_agreement((n + 3) * element_size(mul.output.type),
                                               mul.output.type == ElementType::kFloat32,
                                               [&](const QuantizedKernels& table, uint8_t* out) {
                                                 table.mul((mul.out = out, mul), {3, n + 3});
                                               }));
    }
  }
}

// Every pair of codes, so every value that the rounding and the saturation can see.
TEST_P(QuantizedAgreement, AddAndMulOnEveryPairOfCodesAndZeroPoint) {
  std::vector<uint8_t> a(65536), b(65536);
  for (int64_t i = 0; i < 65536; ++i) {
    a[i] = static_cast<uint8_t>(i / 256);
    b[i] = static_cast<uint8_t>(i % 256);
  }
  Random random(2);
  const OutputSpec output{ElementType::kUInt8, 128.0f, {0.0f, 255.0f}, numerics::no_activation()};
  for (int32_t zero_point = 0; zero_point < 256; zero_point += 5) {
    const Operand left{a.data(), ElementType::kUInt8, zero_point};
    const Operand right{b.data(), ElementType::kInt8, zero_point - 128};
    AddArgs add{left, right, 0.5f, random.uniform(-1.0f, 1.0f), output, nullptr};
    MulArgs mul{left, right, random.uniform(0.0f, 0.02f), output, nullptr};
    ASSERT_NO_FATAL_FAILURE(expect_agreement(65536, false, [&](const QuantizedKernels& table, uint8_t* out) {
      table.add((add.out = out, add), {0, 65536});
    }));
    ASSERT_NO_FATAL_FAILURE(expect_agreement(65536, false, [&](const QuantizedKernels& table, uint8_t* out) {
      table.mul((mul.out = out, mul), {0, 65536});
    }));
  }
}

TEST_P(QuantizedAgreement, LookupOnEveryLengthAndEntrySize) {
  Random random(3);
  const auto table_bytes = random_bytes(256 * 4, random);
  for (const int64_t size : {1, 2, 4}) {
    for (const ElementType type : {ElementType::kUInt8, ElementType::kInt8}) {
      for (const int64_t n : test::run_lengths()) {
        auto x = random_bytes(n, random);
        for (int64_t i = 0; i < n && n >= 128; ++i) x[i] = static_cast<uint8_t>(i + (n % 2) * 128);
        ASSERT_NO_FATAL_FAILURE(expect_agreement(n * size, false, [&](const QuantizedKernels& table, uint8_t* out) {
          table.lookup({x.data(), type, table_bytes.data(), size, out}, {0, n});
        }));
      }
    }
  }
}

// One operand repeats over the pixels of an image; the others have gaps or none.
TEST_P(QuantizedAgreement, ElementwiseOnImages) {
  Random random(4);
  const auto entries = random_bytes(256, random);
  for (int round = 0; round < 300; ++round) {
    const int64_t batch = random.integer(1, 2), height = random.integer(1, 3), width = random.integer(1, 20);
    const int64_t channels = random.integer(1, 100);
    const auto pitched = [&] {
      const bool dense = random.integer(0, 1) == 0;
      return PitchedImage(batch, height, width, channels, channels + (dense ? 0 : random.integer(1, 9)), {1, 0, 1, 1});
    };
    PitchedImage a = pitched(), b = pitched(), out = pitched();
    a.randomize(random);
    b.randomize(random);
    ImageLayout b_layout = b.layout();
    if (random.integer(0, 2) == 0) b_layout.pixel_pitch = b_layout.row_pitch = 0;
    const PointwiseImages images{channels, a.layout(), b_layout, out.layout()};
    const PointwiseImages unary{channels, a.layout(), a.layout(), out.layout()};
    const ElementType type = random_code_type(random);
    OutputSpec output = random_output(random);
    if (output.type == ElementType::kFloat32) {
      output = {ElementType::kUInt8, 7.0f, {0.0f, 255.0f}, numerics::no_activation()};
    }
    const Operand left{a.origin(), type, random_zero_point(type, random)};
    const Operand right{b.origin(), ElementType::kUInt8, 3};
    const int64_t origin = out.origin() - out.bytes().data();
    const IndexRange rows{random.integer(0, batch * height - 1), batch * height};
    const AddArgs add{left, right, random_multiplier(random), random_multiplier(random), output, nullptr};
    const MulArgs mul{left, right, random_multiplier(random), output, nullptr};
    const LookupArgs lookup{a.origin(), type, entries.data(), 1, nullptr};
    const auto agree = [&](auto args, const PointwiseImages& walk, auto entry) {
      expect_agreement(static_cast<int64_t>(out.bytes().size()), false,
                       [&](const QuantizedKernels& table, uint8_t* data) {
                         args.out = data + origin;
                         (table.*entry)(args, walk, rows);
                       });
    };
    ASSERT_NO_FATAL_FAILURE(agree(add, images, &QuantizedKernels::add_image)) << "round " << round;
    ASSERT_NO_FATAL_FAILURE(agree(mul, images, &QuantizedKernels::mul_image)) << "round " << round;
    ASSERT_NO_FATAL_FAILURE(agree(lookup, unary, &QuantizedKernels::lookup_image)) << "round " << round;
  }
}

// An image, its output and which part of it a kernel is asked for.
struct PoolShape {
  explicit PoolShape(Random& random)
      : batch(random.integer(1, 2)),
        channels(random.integer(0, 2) == 0 ? random.integer(1, 200) : 32 * random.integer(1, 5)),
        in(batch, random.integer(1, 9), random.integer(1, 9), channels, channels + random.integer(0, 1) * 5,
           {1, 0, 1, 1}) {
    in.randomize(random);
  }
  int64_t batch;
  int64_t channels;
  PitchedImage in;
};

TEST_P(QuantizedAgreement, MaxPool) {
  Random random(5);
  for (int round = 0; round < 600; ++round) {
    PoolShape shape(random);
    const auto axis = [&](int64_t size, int64_t* out_size) {
      MaxPoolAxis axis{};
      do {
        axis = {random.integer(1, 4), random.integer(1, 3), 0, random.integer(1, 2)};
        axis.padding = random.integer(0, axis.kernel / 2);
        *out_size = (size + 2 * axis.padding - axis.dilation * (axis.kernel - 1) - 1 + axis.stride) / axis.stride;
      } while (*out_size < 1);
      return axis;
    };
    int64_t out_height = 0, out_width = 0;
    const MaxPoolAxis height = axis(shape.in.layout().height, &out_height);
    const MaxPoolAxis width = axis(shape.in.layout().width, &out_width);
    PitchedImage out(shape.batch, out_height, out_width, shape.channels, shape.channels + 2, {1, 1, 0, 1});
    const ElementType type = random_code_type(random);
    MaxPoolArgs args{
        shape.channels, height,      width, shape.in.origin(), shape.in.layout(), type, random_zero_point(type, random),
        nullptr,        out.layout()};
    const int64_t origin = out.origin() - out.bytes().data();
    const IndexRange pixels{random.integer(0, out_width - 1), shape.batch * out_height * out_width};
    ASSERT_NO_FATAL_FAILURE(expect_agreement(static_cast<int64_t>(out.bytes().size()), false,
                                             [&](const QuantizedKernels& table, uint8_t* data) {
                                               args.out = data + origin;
                                               table.max_pool(args, pixels);
                                             }))
        << "round " << round << ", channels " << shape.channels;
  }
}

std::vector<PoolWindow> random_windows(int64_t out_size, int64_t in_size, Random& random) {
  std::vector<PoolWindow> windows;
  for (int64_t o = 0; o < out_size; ++o) {
    const int64_t begin = random.integer(0, in_size - 1);
    const int64_t end = random.integer(begin, in_size);  // an empty window is possible: its average is NaN
    windows.push_back({begin, end, random.integer(0, 1) == 0 ? end - begin : end - begin + 1});
  }
  return windows;
}

TEST_P(QuantizedAgreement, AveragePool) {
  Random random(6);
  for (int round = 0; round < 600; ++round) {
    PoolShape shape(random);
    const int64_t out_height = random.integer(1, 4), out_width = random.integer(1, 4);
    const auto rows = random_windows(out_height, shape.in.layout().height, random);
    const auto columns = random_windows(out_width, shape.in.layout().width, random);
    const OutputSpec output = random_output(random);
    const ElementType type = random_code_type(random);
    // Pitches are elements, so the buffer of a float output is four times as large.
    PitchedImage out(shape.batch, out_height, out_width, shape.channels, shape.channels + 2, {1, 1, 0, 1});
    AvgPoolArgs args{shape.channels,
                     rows.data(),
                     columns.data(),
                     random.integer(0, 1) == 0 ? 0 : random.integer(1, 9),
                     shape.in.origin(),
                     shape.in.layout(),
                     type,
                     random_zero_point(type, random),
                     random_multiplier(random),
                     output,
                     nullptr,
                     out.layout()};
    const int64_t size = element_size(output.type);
    const int64_t origin = (out.origin() - out.bytes().data()) * size;
    const IndexRange pixels{random.integer(0, out_width - 1), shape.batch * out_height * out_width};
    ASSERT_NO_FATAL_FAILURE(expect_agreement(static_cast<int64_t>(out.bytes().size()) * size, size == 4,
                                             [&](const QuantizedKernels& table, uint8_t* data) {
                                               args.out = data + origin;
                                               table.avg_pool(args, pixels);
                                             }))
        << "round " << round << ", channels " << shape.channels;
  }
}

TEST_P(QuantizedAgreement, LinearResize) {
  Random random(7);
  for (int round = 0; round < 600; ++round) {
    PoolShape shape(random);
    const int64_t out_height = random.integer(1, 12), out_width = random.integer(1, 12);
    const bool align_corners = random.integer(0, 1) == 1;
    const auto taps = [&](int64_t in_size, int64_t out_size) {
      std::vector<numerics::LinearTap> result;
      const float ratio = numerics::resize_ratio(in_size, out_size, align_corners, 0.0);
      for (int64_t o = 0; o < out_size; ++o) {
        result.push_back(numerics::linear_tap(in_size, out_size, o, ratio, align_corners));
      }
      return result;
    };
    const auto rows = taps(shape.in.layout().height, out_height);
    const auto columns = taps(shape.in.layout().width, out_width);
    const OutputSpec output = random_output(random);
    const ElementType type = random_code_type(random);
    PitchedImage out(shape.batch, out_height, out_width, shape.channels, shape.channels + 2, {1, 1, 0, 1});
    ResizeLinearArgs args{shape.channels,
                          shape.in.origin(),
                          type,
                          shape.in.layout(),
                          random_zero_point(type, random),
                          rows.data(),
                          columns.data(),
                          random_multiplier(random),
                          output,
                          nullptr,
                          out.layout()};
    const int64_t size = element_size(output.type);
    const int64_t origin = (out.origin() - out.bytes().data()) * size;
    ASSERT_NO_FATAL_FAILURE(expect_agreement(static_cast<int64_t>(out.bytes().size()) * size, size == 4,
                                             [&](const QuantizedKernels& table, uint8_t* data) {
                                               args.out = data + origin;
                                               table.resize_linear(args, {0, shape.batch * out_height});
                                             }))
        << "round " << round << ", channels " << shape.channels;
  }
}

std::vector<Isa> isas_beside_the_reference() {
  std::vector<Isa> isas = available_isas();
  isas.erase(isas.begin());
  return isas;
}

GTEST_ALLOW_UNINSTANTIATED_PARAMETERIZED_TEST(QuantizedAgreement);  // a processor that runs only the reference
INSTANTIATE_TEST_SUITE_P(Isa, QuantizedAgreement, ::testing::ValuesIn(isas_beside_the_reference()),
                         test::isa_test_name);

// The tests above cover available_isas(); this one fails if that leaves out one that the machine has.
TEST(QuantizedCoverage, EveryInstructionSetOfThisMachineIsTested) {
  std::vector<std::string> tested = {"reference"};
  for (Isa isa : isas_beside_the_reference()) tested.push_back(isa_name(isa));
  EXPECT_EQ(tested, test::isas_of_this_machine());
}

}  // namespace
}  // namespace torchquant::kernels
