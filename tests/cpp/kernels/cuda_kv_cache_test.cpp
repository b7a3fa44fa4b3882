// The key-value cache on CUDA (run by the emulation) against the plain loops of kernels/kv_cache.h: stored bits alike,
// attention within a bound, with lengths around turns and splits, shared heads, and lengths of zero.
#include <gtest/gtest.h>

#include <cmath>
#include <string>
#include <vector>

#include "kernels/cuda/kv_cache.h"
#include "support/halves.h"
#include "support/rng.h"

namespace torchquant::kernels {
namespace {

using test::Random;

struct Cache {
  explicit Cache(const KvCacheShape& shape)
      : key(shape.batch * shape.heads * shape.capacity * shape.depth, 99),
        value(key),
        key_scale(shape.batch * shape.heads * shape.capacity, 99.0f),
        value_scale(key_scale) {}
  KvCache keys() { return {key.data(), key_scale.data()}; }
  KvCache values() { return {value.data(), value_scale.data()}; }
  bool operator==(const Cache&) const = default;

  std::vector<int8_t> key, value;
  std::vector<float> key_scale, value_scale;
};

std::vector<float> random_values(int64_t count, Random& random) {
  std::vector<float> x(count);
  for (float& v : x) v = random.bell(2.0f);
  return x;
}

TEST(CudaKvCache, AppendsWhatTheCpuDoes) {
  Random random(1);
  for (const FloatType type : {FloatType::kFloat32, FloatType::kBFloat16, FloatType::kFloat16}) {
    for (const int64_t depth : {4, 64, 132}) {
      const KvCacheShape shape{2, 3, 9, depth};
      const int64_t tokens = 5;
      auto raw = random_values(shape.batch * shape.heads * tokens * depth, random);
      for (int64_t d = 0; d < depth; ++d) raw[d] = 0.0f;
      raw[depth] = INFINITY;
      raw[depth + 1] = NAN;
      const auto key = test::narrowed(raw, type);
      const auto value = test::narrowed(random_values(static_cast<int64_t>(raw.size()), random), type);
      const auto wide_key = test::widened(key, type), wide_value = test::widened(value, type);
      const std::vector<int32_t> lengths{0, 4};
      Cache expected(shape), actual(shape);
      kv_append({shape, tokens, wide_key.data(), wide_value.data(), lengths.data(), expected.keys(), expected.values()},
                {0, shape.batch * shape.heads});
      ASSERT_EQ(
          cuda::kv_append({shape, tokens, key.data(), value.data(), lengths.data(), actual.keys(), actual.values()},
                          type, nullptr),
          cudaSuccess);
      EXPECT_EQ(actual, expected);
    }
  }
}

TEST(CudaKvCache, TokensBeyondTheCapacityAreNotStored) {
  Random random(2);
  const KvCacheShape shape{1, 2, 4, 64};
  const auto x = random_values(2 * 3 * 64, random);
  const std::vector<int32_t> lengths{3};
  Cache cache(shape);
  ASSERT_EQ(cuda::kv_append({shape, 3, x.data(), x.data(), lengths.data(), cache.keys(), cache.values()},
                            FloatType::kFloat32, nullptr),
            cudaSuccess);
  EXPECT_NE(cache.key_scale[3], 99.0f);
  EXPECT_EQ(cache.key_scale[2], 99.0f);
  EXPECT_EQ(cache.key_scale[4], 99.0f);
}

double narrowing(FloatType type) {
  return type == FloatType::kFloat32 ? 0.0 : type == FloatType::kBFloat16 ? 0x1p-8 : 0x1p-11;
}

// Outputs are averages of values: an error is measured against the largest value.
void expect_attention(const KvCacheShape& shape, int64_t query_heads, const std::vector<int32_t>& lengths,
                      FloatType type, Random& random) {
  SCOPED_TRACE("depth " + std::to_string(shape.depth) + ", capacity " + std::to_string(shape.capacity) + ", " +
               std::to_string(query_heads) + " query heads, type " + std::to_string(static_cast<int>(type)));
  Cache cache(shape);
  for (int8_t& code : cache.key) code = static_cast<int8_t>(random.integer(-127, 127));
  for (int8_t& code : cache.value) code = static_cast<int8_t>(random.integer(-127, 127));
  for (float& s : cache.key_scale) s = random.uniform(0.001f, 0.02f);
  for (float& s : cache.value_scale) s = random.uniform(0.001f, 0.02f);
  const auto query = test::narrowed(random_values(shape.batch * query_heads * shape.depth, random), type);
  const auto wide_query = test::widened(query, type);
  std::vector<float> expected(wide_query.size()), row(shape.capacity);
  auto out = test::narrowed(std::vector<float>(wide_query.size(), -99.0f), type);
  const auto args = [&](const void* q, void* o) {
    return KvAttentionArgs{shape, query_heads, q, cache.keys(), cache.values(), lengths.data(), 0.125f, o};
  };
  kv_attention(args(wide_query.data(), expected.data()), {0, shape.batch * query_heads}, row.data());
  const KvAttentionArgs on_device = args(query.data(), out.data());
  ASSERT_TRUE(cuda::attention_takes(on_device));
  std::vector<float> scratch(cuda::kv_attention_scratch_bytes(on_device) / sizeof(float), NAN);
  ASSERT_EQ(cuda::kv_attention(on_device, type, scratch.data(), nullptr), cudaSuccess);
  const auto actual = test::widened(out, type);
  for (size_t i = 0; i < expected.size(); ++i) {
    const double bound = 127 * 0.02 * 1e-5 + narrowing(type) * std::fabs(expected[i]);
    ASSERT_NEAR(actual[i], expected[i], bound) << "element " << i;
  }
}

TEST(CudaKvCache, AttendsAsThePlainLoops) {
  Random random(3);
  for (const FloatType type : {FloatType::kFloat32, FloatType::kBFloat16, FloatType::kFloat16}) {
    expect_attention({2, 2, 70, 64}, 4, {1, 65}, type, random);
    expect_attention({1, 1, 33, 128}, 9, {33}, type, random);
    expect_attention({3, 1, 40, 128}, 16, {0, 15, 17}, type, random);
  }
}

TEST(CudaKvCache, SplitsOfALongCache) {
  Random random(4);
  expect_attention({1, 1, 1100, 64}, 1, {1001}, FloatType::kBFloat16, random);
  expect_attention({2, 1, 700, 128}, 2, {64, 700}, FloatType::kFloat16, random);
}

TEST(CudaKvCache, LengthsAreClampedToTheCapacity) {
  Random random(5);
  const KvCacheShape shape{1, 1, 20, 64};
  Cache cache(shape);
  cache.key.assign(cache.key.size(), 1);
  cache.value.assign(cache.value.size(), 3);
  cache.key_scale.assign(20, 0.5f);
  cache.value_scale.assign(20, 0.5f);
  const std::vector<float> query(64, 1.0f);
  for (const int32_t length : {-5, 1000}) {
    std::vector<float> out(64, -99.0f);
    const std::vector<int32_t> lengths{length};
    const KvAttentionArgs args{shape,          1,      query.data(), cache.keys(), cache.values(),
                               lengths.data(), 0.125f, out.data()};
    std::vector<float> scratch(cuda::kv_attention_scratch_bytes(args) / sizeof(float));
    ASSERT_EQ(cuda::kv_attention(args, FloatType::kFloat32, scratch.data(), nullptr), cudaSuccess);
    for (const float value : out) ASSERT_EQ(value, length < 0 ? 0.0f : 1.5f);
  }
}

}  // namespace
}  // namespace torchquant::kernels
