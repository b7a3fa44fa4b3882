// integer_matmul() of every instruction set against sums in int64, over the whole memory of the result.
#include "kernels/integer_matmul.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <vector>

#include "support/isas.h"
#include "support/matmul_case.h"

namespace torchquant::kernels {
namespace {

using numerics::Activation;
using test::codes_output;
using test::float_output;
using test::MatmulCase;
using test::MatmulProblem;

class IntegerMatmul : public ::testing::TestWithParam<Isa> {
 protected:
  // In ranges of at most `each` panels.
  static std::vector<uint8_t> by_panels(const MatmulProblem& problem, int64_t each) {
    return problem.run([&](const MatmulArgs& args) {
      for (int64_t p = 0; p < matmul_panels(args); p += each) {
        integer_matmul(GetParam())(args, {p, std::min(p + each, matmul_panels(args))});
      }
    });
  }

  static void agrees(const MatmulCase& sizes, uint64_t seed = 1) {
    const MatmulProblem problem(sizes, seed);
    ASSERT_EQ(by_panels(problem, 1 << 20), problem.expected()) << sizes.describe();
  }
};

TEST_P(IntegerMatmul, SizesAroundTheEdgesOfTiles) {
  for (const int64_t rows : {1, 2, 5, 6, 7, 13, 14, 15, 29}) {
    for (const int64_t depth : {1, 2, 3, 4, 5, 8, 15, 16, 17, 31, 32, 33, 64, 70}) {
      for (const int64_t columns : {1, 3, 4, 15, 16, 17, 31, 32, 33, 64, 65}) {
        for (const bool transposed : {false, true}) {
          agrees({.rows = rows, .depth = depth, .columns = columns, .transposed = transposed});
        }
      }
    }
  }
}

TEST_P(IntegerMatmul, EveryTypeAndZeroPoint) {
  const auto zero_points = [](ElementType type) {
    return type == ElementType::kUInt8 ? std::vector<int32_t>{0, 128, 255} : std::vector<int32_t>{-128, 0, 127};
  };
  for (const ElementType a : {ElementType::kUInt8, ElementType::kInt8}) {
    for (const ElementType b : {ElementType::kUInt8, ElementType::kInt8}) {
      for (const int32_t a_zero_point : zero_points(a)) {
        for (const int32_t b_zero_point : zero_points(b)) {
          for (const int64_t depth : {18, 64}) {
            MatmulCase sizes{.rows = 17, .depth = depth, .columns = 40, .a_type = a, .b_type = b};
            sizes.a_zero_point = a_zero_point;
            sizes.b_zero_point = b_zero_point;
            sizes.multiplier = 0.002f;
            sizes.output = codes_output(a, a == ElementType::kUInt8 ? 128.0f : 0.0f);
            agrees(sizes);
            sizes.output = float_output();
            sizes.transposed = true;
            agrees(sizes);
          }
        }
      }
    }
  }
}

TEST_P(IntegerMatmul, RowsWithGapsAndBatches) {
  for (const bool transposed : {false, true}) {
    for (const int64_t depth : {5, 64}) {
      MatmulCase sizes{
          .rows = 15, .depth = depth, .columns = 70, .transposed = transposed, .gap = 7, .batch = 3, .heads = 2};
      agrees(sizes);
      const MatmulProblem problem(sizes, 3);
      for (const int64_t each : {1, 2, 4}) EXPECT_EQ(by_panels(problem, each), problem.expected()) << each;
    }
  }
}

TEST_P(IntegerMatmul, DeepestSumsReachTheEdgeOfInt32) {
  MatmulCase sizes{.rows = 3, .depth = kMaxMatmulDepth, .columns = 33};
  sizes.output = float_output();
  sizes.multiplier = 1.0f;
  for (const int64_t a : {0, 255}) {
    for (const int64_t b : {0, 255}) {
      sizes.fill_a = a;
      sizes.fill_b = b;
      sizes.a_zero_point = static_cast<int32_t>(255 - a);
      sizes.b_zero_point = static_cast<int32_t>(255 - b);
      agrees(sizes);
    }
  }
}

// Products of 1 and every code, halved: each odd one lies on a tie.
TEST_P(IntegerMatmul, TiesGoToEven) {
  MatmulCase sizes{.rows = 14, .depth = 1, .columns = 64, .a_zero_point = 127, .b_zero_point = 128, .multiplier = 0.5f};
  sizes.fill_a = 128;
  sizes.output = codes_output(ElementType::kUInt8, 101.0f);
  agrees(sizes);
}

// A whole packed panel and one that ends early, beyond what converts to int32 without care.
TEST_P(IntegerMatmul, SaturatesHowLargeTheValueMayBe) {
  for (const float multiplier : {1e3f, 1e30f, -1e30f, 0.0f}) {
    MatmulCase sizes{.rows = 20, .depth = 64, .columns = 50, .multiplier = multiplier};
    agrees(sizes);
    sizes.output = codes_output(ElementType::kInt8, -5.0f);
    agrees(sizes);
  }
}

TEST_P(IntegerMatmul, AppliesTheActivation) {
  for (const Activation kind : {Activation::kClamp, Activation::kGelu, Activation::kSigmoid}) {
    const ActivationSpec activation{kind, {-3.25f, 40.5f}, 0.1f, 10.0f};
    MatmulCase sizes{.rows = 15, .depth = 16, .columns = 45, .multiplier = 1e-3f};
    sizes.output = codes_output(ElementType::kUInt8, 7.0f, activation);
    agrees(sizes);
    sizes.output = {ElementType::kFloat32, 0.0f, {0.0f, 0.0f}, {kind, {-3.25f, 40.5f}, 1.0f, 1.0f}};
    agrees(sizes);
  }
}

// More panels than are packed at a time.
TEST_P(IntegerMatmul, WideAndDeep) {
  agrees({.rows = 3, .depth = 1030, .columns = 600, .multiplier = 1e-5f});
  agrees({.rows = 3, .depth = 1030, .columns = 600, .transposed = true, .multiplier = 1e-5f});
}

TEST(MatmulBatch, FindsEveryProduct) {
  const MatmulBatch batch{2, {{2, 100, 10, 1}, {3, 1000, 0, 7}}};
  EXPECT_EQ(batch.products(), 6);
  const MatmulPlace last = batch.place(5);
  EXPECT_EQ(last.a, 100 + 2 * 1000);
  EXPECT_EQ(last.b, 10);
  EXPECT_EQ(last.out, 1 + 2 * 7);
  EXPECT_EQ((MatmulBatch{0, {}}.products()), 1);
}

INSTANTIATE_TEST_SUITE_P(Isa, IntegerMatmul, ::testing::ValuesIn(available_isas()), test::isa_test_name);

}  // namespace
}  // namespace torchquant::kernels
