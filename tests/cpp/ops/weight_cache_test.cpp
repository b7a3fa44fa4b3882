// What is packed stays with its weight: made once, made again after a change, shared by those who share the tensor and
// by nobody else.
#include "ops/weight_cache.h"

#include <ATen/ops/full.h>
#include <c10/core/InferenceMode.h>
#include <gtest/gtest.h>

#include <atomic>
#include <thread>

namespace torchquant::ops {
namespace {

class Sum final : public CachedWeight {
 public:
  explicit Sum(int64_t value) : value(value) {}
  const char* kernel() const override { return "sum"; }
  int64_t bytes() const override { return 8; }
  int64_t value;
};

constexpr WeightKey kKey{WeightKey::Maker::kConv, {1, 2}};

// The sum of a weight's elements; counts in `makes` how often it was made.
int64_t cached_sum(const at::Tensor& weight, std::atomic<int>& makes, const WeightKey& key = kKey) {
  return cached_weight(weight, key,
                       [&] {
                         ++makes;
                         return std::make_shared<const Sum>(weight.sum().item<int64_t>());
                       })
      ->value;
}

at::Tensor ones(int64_t n) { return at::full({n}, 1, at::TensorOptions().dtype(at::kChar)); }

TEST(WeightCache, MakesOnce) {
  const at::Tensor weight = ones(5);
  std::atomic<int> makes{0};
  EXPECT_EQ(cached_sum(weight, makes), 5);
  const at::Tensor same = weight;
  EXPECT_EQ(cached_sum(same, makes), 5);
  EXPECT_EQ(makes, 1);
}

TEST(WeightCache, MakesAnewForAnotherKey) {
  const at::Tensor weight = ones(5);
  std::atomic<int> makes{0};
  cached_sum(weight, makes);
  cached_sum(weight, makes, {WeightKey::Maker::kConv, {1, 3}});
  cached_sum(weight, makes, {WeightKey::Maker::kLinear, {1, 2}});
  cached_sum(weight, makes);
  EXPECT_EQ(makes, 3);
  EXPECT_EQ(packed_records(weight).size(), 3u);
}

TEST(WeightCache, MakesAnewAfterAChange) {
  const at::Tensor weight = ones(5);
  std::atomic<int> makes{0};
  EXPECT_EQ(cached_sum(weight, makes), 5);
  weight.fill_(3);
  EXPECT_EQ(cached_sum(weight, makes), 15);
  EXPECT_EQ(makes, 2);
  EXPECT_EQ(packed_records(weight).size(), 1u) << "what the old contents gave must be freed";
}

TEST(WeightCache, AliasesDoNotShare) {
  const at::Tensor weight = ones(5);
  std::atomic<int> makes{0};
  cached_sum(weight, makes);
  const at::Tensor alias = weight.detach();
  EXPECT_EQ(cached_sum(alias, makes), 5);
  EXPECT_EQ(makes, 2);
  EXPECT_EQ(cached_sum(weight.clone(), makes), 5);
  EXPECT_EQ(makes, 3);
}

TEST(WeightCache, InferenceTensorsAreCached) {
  const c10::InferenceMode guard;
  const at::Tensor weight = ones(4);
  std::atomic<int> makes{0};
  EXPECT_EQ(cached_sum(weight, makes), 4);
  EXPECT_EQ(cached_sum(weight, makes), 4);
  EXPECT_EQ(makes, 1);
}

TEST(WeightCache, ThreadsMakeOnce) {
  for (int round = 0; round < 20; ++round) {
    const at::Tensor weight = ones(7);
    std::atomic<int> makes{0};
    std::vector<std::thread> threads;
    for (int t = 0; t < 4; ++t) threads.emplace_back([&] { EXPECT_EQ(cached_sum(weight, makes), 7); });
    for (std::thread& thread : threads) thread.join();
    EXPECT_EQ(makes, 1);
  }
}

TEST(WeightCache, ReportsWhatWasPacked) {
  const at::Tensor weight = ones(2);
  EXPECT_TRUE(packed_records(weight).empty());
  std::atomic<int> makes{0};
  cached_sum(weight, makes);
  const auto records = packed_records(weight);
  ASSERT_EQ(records.size(), 1u);
  EXPECT_EQ(records[0].kernel, "sum");
  EXPECT_EQ(records[0].bytes, 8);
  EXPECT_GE(records[0].milliseconds, 0.0);
}

TEST(WeightCache, AFailureIsNotKept) {
  const at::Tensor weight = ones(2);
  EXPECT_THROW(cached_weight(weight, kKey, []() -> std::shared_ptr<const Sum> { throw std::runtime_error("no"); }),
               std::runtime_error);
  std::atomic<int> makes{0};
  EXPECT_EQ(cached_sum(weight, makes), 2);
}

}  // namespace
}  // namespace torchquant::ops
