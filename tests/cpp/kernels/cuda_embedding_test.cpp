// The CUDA embedding kernel, run by the emulation, against the CPU reference: every byte.
#include <gtest/gtest.h>

#include <cmath>
#include <vector>

#include "kernels/cuda/embedding.h"
#include "numerics/float16.h"
#include "numerics/int4.h"
#include "support/quantized_cases.h"
#include "support/same_bytes.h"

namespace torchquant::kernels {
namespace {

using test::expect_same_bytes;
using test::Random;

constexpr int64_t kRows = 7;

struct Table {
  Table(int64_t columns, int32_t bits, int64_t group_size, bool has_zero_points, Random& random) {
    const int64_t stored = bits == 8 ? columns : numerics::int4_bytes(columns);
    codes = test::random_bytes(kRows * stored, random);
    for (int64_t i = 0; i < kRows * (columns / group_size); ++i) {
      scale.push_back(random.uniform(0.001f, 2.0f));
      zero_point.push_back(static_cast<float>(random.integer(-8, 7)));
    }
    args = {indices.data(), {codes.data(), columns, bits, bits == 8 ? -127 : -8},
            scale.data(),   has_zero_points ? zero_point.data() : nullptr,
            group_size,     nullptr};
  }
  int64_t count() const { return static_cast<int64_t>(indices.size()); }

  std::vector<int64_t> indices{6, 0, 3, 3, 5};
  std::vector<uint8_t> codes;
  std::vector<float> scale, zero_point;
  EmbeddingArgs args{};
};

TEST(CudaEmbedding, RowsOfEveryWidthAndGranularity) {
  Random random(1);
  for (const int64_t columns : {1, 3, 4, 6, 32, 50, 768}) {
    for (const int32_t bits : {8, 4}) {
      for (const int64_t groups : {1, 2}) {
        if (columns % groups != 0) continue;
        Table table(columns, bits, columns / groups, random.integer(0, 1) == 1, random);
        const auto by_reference = [&](uint8_t* out) {
          table.args.out = reinterpret_cast<float*>(out);
          quantized_kernels(Isa::kReference).embedding(table.args, {0, table.count()});
        };
        ASSERT_NO_FATAL_FAILURE(expect_same_bytes(table.count() * columns * 4, true, by_reference,
                                                  [&](uint8_t* out) {
                                                    ASSERT_EQ(cuda::embedding(table.args, table.count(), kRows, out,
                                                                              FloatType::kFloat32, nullptr),
                                                              cudaSuccess);
                                                  }))
            << columns << " columns of " << bits << " bits, " << groups << " groups";
      }
    }
  }
}

TEST(CudaEmbedding, HalvesAreTheRoundedFloats) {
  Random random(2);
  Table table(50, 8, 50, true, random);
  std::vector<float> want(static_cast<size_t>(table.count()) * 50);
  table.args.out = want.data();
  quantized_kernels(Isa::kReference).embedding(table.args, {0, table.count()});
  std::vector<numerics::BFloat16> bf16(want.size());
  std::vector<numerics::Float16> fp16(want.size());
  cuda::embedding(table.args, table.count(), kRows, bf16.data(), FloatType::kBFloat16, nullptr);
  cuda::embedding(table.args, table.count(), kRows, fp16.data(), FloatType::kFloat16, nullptr);
  for (size_t i = 0; i < want.size(); ++i) {
    ASSERT_EQ(bf16[i].bits, numerics::from_float<numerics::BFloat16>(want[i]).bits);
    ASSERT_EQ(fp16[i].bits, numerics::from_float<numerics::Float16>(want[i]).bits);
  }
}

TEST(CudaEmbedding, AnIndexOutsideTheTableGivesNaNAndReadsNothing) {
  Random random(3);
  Table table(5, 8, 5, true, random);
  table.indices = {kRows, 2, -1, 1, int64_t{1} << 60};
  std::vector<float> out(25);
  cuda::embedding(table.args, 5, kRows, out.data(), FloatType::kFloat32, nullptr);
  for (size_t i = 0; i < out.size(); ++i) {
    const bool outside = i / 5 != 1 && i / 5 != 3;
    EXPECT_EQ(std::isnan(out[i]), outside) << i;
  }
}

}  // namespace
}  // namespace torchquant::kernels
