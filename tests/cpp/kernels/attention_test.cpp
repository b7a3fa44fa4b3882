// Attention of every instruction set against the reference, bit by bit, at sizes around the kernels' blocks and tiles,
// and the reference against fp64.
#include "kernels/attention.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <limits>
#include <vector>

#include "kernels/quantized_kernels.h"
#include "support/rng.h"

namespace torchquant::kernels {
namespace {

using test::Random;

constexpr float kUntouched = -12345.0f;
constexpr float kInfinity = std::numeric_limits<float>::infinity();

enum class Mask { kNone, kFull, kPerKey, kCausal };

// Two images of three heads, whose rows lie as a merged projection of query, key and value leaves them.
class Problem {
 public:
  Problem(int64_t queries, int64_t keys, int64_t depth, Mask kind, uint64_t seed = 7)
      : q_(kBatch * queries * kHeads * depth),
        k_(kBatch * keys * kHeads * depth),
        v_(k_.size()),
        mask_(queries * keys) {
    Random random(seed);
    for (auto* values : {&q_, &k_, &v_}) {
      for (float& value : *values) value = random.uniform(-2.0f, 2.0f);
    }
    for (float& value : mask_) value = random.integer(0, 3) == 0 ? -kInfinity : random.uniform(-1.0f, 1.0f);
    const auto rows = [&](std::vector<float>& data, int64_t count) {
      return HeadRows<const float>{data.data(), count * kHeads * depth, depth, kHeads * depth};
    };
    args_ = {kBatch, kHeads, queries, keys, depth, rows(q_, queries), rows(k_, keys), rows(v_, keys),
             {},     0,      false,   0.3f, {}};
    args_.causal = kind == Mask::kCausal;
    if (kind == Mask::kFull) args_.mask = {mask_.data(), 0, 0, keys};
    if (kind == Mask::kPerKey) args_.mask = {mask_.data(), 0, 0, 0};
    args_.mask_column_stride = 1;
  }

  // Every block by a call of its own, in reverse, and nothing may be written beyond the outputs.
  std::vector<float> run(Isa isa) const {
    std::vector<float> out(q_.size() + 16, kUntouched);
    AttentionArgs args = args_;
    args.out = {out.data(), args.queries * kHeads * args.depth, args.depth, kHeads * args.depth};
    std::vector<float> scratch(attention_scratch(args));
    for (int64_t block = attention_blocks(args); block-- > 0;) {
      quantized_kernels(isa).attention(args, {block, block + 1}, scratch.data());
    }
    for (int i = 0; i < 16; ++i) EXPECT_EQ(out[q_.size() + i], kUntouched);
    out.resize(q_.size());
    return out;
  }

  double expected(int64_t image, int64_t head, int64_t query, int64_t channel) const {
    const auto at = [&](const std::vector<float>& data, int64_t count, int64_t row, int64_t d) {
      return static_cast<double>(data[((image * count + row) * kHeads + head) * args_.depth + d]);
    };
    double sum = 0.0, value = 0.0;
    for (int64_t j = 0; j < args_.keys; ++j) {
      double score = 0.0;
      for (int64_t d = 0; d < args_.depth; ++d) score += at(q_, args_.queries, query, d) * at(k_, args_.keys, j, d);
      score *= static_cast<double>(args_.scale);
      if (args_.mask.data != nullptr) score += static_cast<double>(mask_[query * args_.mask.row_stride + j]);
      const double weight = args_.causal && j > query ? 0.0 : std::exp(score);
      sum += weight;
      value += weight * at(v_, args_.keys, j, channel);
    }
    return sum == 0.0 ? 0.0 : value / sum;
  }

  const AttentionArgs& args() const { return args_; }
  static constexpr int64_t kBatch = 2, kHeads = 3;

 private:
  std::vector<float> q_, k_, v_, mask_;
  AttentionArgs args_;
};

constexpr Mask kMasks[] = {Mask::kNone, Mask::kFull, Mask::kPerKey, Mask::kCausal};

TEST(Attention, EveryInstructionSetGivesTheReferencesBits) {
  for (const Mask mask : kMasks) {
    for (const int64_t queries : {1, 7, 31, 32, 33, 40}) {
      for (const int64_t keys : {1, 8, 13, 33}) {
        for (const int64_t depth : {1, 15, 16, 32, 64, 83}) {
          const Problem problem(queries, keys, depth, mask);
          const std::vector<float> expected = problem.run(Isa::kReference);
          for (const Isa isa : available_isas()) {
            const std::vector<float> actual = problem.run(isa);
            ASSERT_EQ(memcmp(actual.data(), expected.data(), expected.size() * sizeof(float)), 0)
                << isa_name(isa) << ", " << queries << " queries, " << keys << " keys, depth " << depth << ", mask "
                << static_cast<int>(mask);
          }
        }
      }
    }
  }
}

TEST(Attention, ReferenceIsNearTheFormula) {
  for (const Mask mask : kMasks) {
    const Problem problem(9, 12, 20, mask);
    const std::vector<float> actual = problem.run(Isa::kReference);
    size_t i = 0;
    for (int64_t image = 0; image < Problem::kBatch; ++image) {
      for (int64_t query = 0; query < 9; ++query) {
        for (int64_t head = 0; head < Problem::kHeads; ++head) {
          for (int64_t d = 0; d < 20; ++d) {
            EXPECT_NEAR(actual[i++], problem.expected(image, head, query, d), 1e-5)
                << "mask " << static_cast<int>(mask);
          }
        }
      }
    }
  }
}

// A query that may see nothing gives 0, as torch's attention does, and not NaN.
TEST(Attention, AQueryThatSeesNothingGivesZero) {
  const float q = 1.0f, k = 2.0f, v = 3.0f, mask = -kInfinity;
  for (const Isa isa : available_isas()) {
    float out = kUntouched;
    float scratch[2 * kAttentionBlock];
    const AttentionArgs args{
        1, 1, 1, 1, 1, {&q, 1, 1, 1}, {&k, 1, 1, 1}, {&v, 1, 1, 1}, {&mask, 0, 0, 0}, 0, false, 1.0f, {&out, 1, 1, 1}};
    quantized_kernels(isa).attention(args, {0, 1}, scratch);
    EXPECT_EQ(out, 0.0f) << isa_name(isa);
  }
}

}  // namespace
}  // namespace torchquant::kernels
