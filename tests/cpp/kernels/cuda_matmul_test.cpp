// The CUDA kernel of batched integer matrix products, run by the emulation, against sums in int64: every byte.
#include <gtest/gtest.h>

#include <vector>

#include "kernels/cuda/integer_matmul.h"
#include "support/matmul_case.h"

namespace torchquant::kernels {
namespace {

using test::codes_output;
using test::float_output;
using test::MatmulCase;
using test::MatmulProblem;

void agrees(const MatmulCase& sizes) {
  const MatmulProblem problem(sizes, 1);
  const auto out =
      problem.run([](const MatmulArgs& args) { ASSERT_EQ(cuda::integer_matmul(args, nullptr), cudaSuccess); });
  ASSERT_EQ(out, problem.expected()) << sizes.describe();
}

TEST(CudaMatmul, SizesAroundTheEdgesOfTiles) {
  for (const int64_t rows : {1, 65}) {
    for (const int64_t columns : {3, 64, 66}) {
      for (const int64_t depth : {1, 16, 63, 64, 130}) {
        for (const bool transposed : {false, true}) {
          agrees({.rows = rows, .depth = depth, .columns = columns, .transposed = transposed});
        }
      }
    }
  }
}

TEST(CudaMatmul, EveryTypeAndZeroPoint) {
  for (const ElementType a : {ElementType::kUInt8, ElementType::kInt8}) {
    for (const ElementType b : {ElementType::kUInt8, ElementType::kInt8}) {
      for (const int32_t extreme : {0, 255}) {
        MatmulCase sizes{.rows = 17, .depth = 70, .columns = 40, .a_type = a, .b_type = b};
        sizes.a_zero_point = a == ElementType::kUInt8 ? extreme : extreme - 128;
        sizes.b_zero_point = b == ElementType::kUInt8 ? 255 - extreme : 127 - extreme;
        sizes.multiplier = 0.002f;
        sizes.output = codes_output(b, b == ElementType::kUInt8 ? 128.0f : 0.0f);
        agrees(sizes);
        sizes.output = float_output();
        agrees(sizes);
      }
    }
  }
}

TEST(CudaMatmul, RowsWithGapsAndBatches) {
  for (const bool transposed : {false, true}) {
    for (const int64_t gap : {7, 16}) {
      agrees({.rows = 15, .depth = 64, .columns = 70, .transposed = transposed, .gap = gap, .batch = 3, .heads = 2});
    }
  }
}

TEST(CudaMatmul, DeepestSumsReachTheEdgeOfInt32) {
  MatmulCase sizes{.rows = 1, .depth = kMaxMatmulDepth, .columns = 2, .a_zero_point = 0, .multiplier = 1.0f};
  sizes.output = float_output();
  sizes.fill_a = 255;
  for (const int64_t b : {0, 255}) {
    sizes.fill_b = b;
    sizes.b_zero_point = static_cast<int32_t>(255 - b);
    agrees(sizes);
  }
}

TEST(CudaMatmul, SaturatesAndAppliesTheActivation) {
  MatmulCase sizes{.rows = 5, .depth = 20, .columns = 9, .multiplier = 1e30f};
  agrees(sizes);
  sizes.multiplier = 1e-3f;
  sizes.output = codes_output(ElementType::kUInt8, 7.0f, {numerics::Activation::kGelu, {0.0f, 0.0f}, 0.1f, 10.0f});
  agrees(sizes);
}

}  // namespace
}  // namespace torchquant::kernels
