// The key-value cache on CUDA (run by the emulation) against the plain loops of kernels/kv_cache.h, in int8 and fp8:
// stored bits alike, attention within a bound, with lengths around turns and splits, shared heads, and lengths of zero.
#include <gtest/gtest.h>

#include <cmath>
#include <string>
#include <vector>

#include "kernels/cuda/kv_cache.h"
#include "numerics/float8.h"
#include "support/halves.h"
#include "support/rng.h"

namespace torchquant::kernels {
namespace {

using test::Random;

constexpr KvCode kCodes[] = {KvCode::kInt8, KvCode::kFloat8E4M3, KvCode::kFloat8E5M2};

struct Cache {
  explicit Cache(const KvCacheShape& shape)
      : key(shape.batch * shape.heads * shape.capacity * shape.depth, 99),
        value(key),
        key_scale(shape.batch * shape.heads * shape.capacity, 99.0f),
        value_scale(key_scale) {}
  KvCache keys() { return {key.data(), key_scale.data()}; }
  KvCache values() { return {value.data(), value_scale.data()}; }
  bool operator==(const Cache&) const = default;

  std::vector<uint8_t> key, value;
  std::vector<float> key_scale, value_scale;
};

std::vector<float> random_values(int64_t count, Random& random) {
  std::vector<float> x(count);
  for (float& v : x) v = random.bell(2.0f);
  return x;
}

void expect_append(const KvCacheShape& shape, FloatType type, Random& random) {
  SCOPED_TRACE("code " + std::to_string(static_cast<int>(shape.code)) + ", depth " + std::to_string(shape.depth));
  const int64_t tokens = 5, depth = shape.depth;
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
  ASSERT_EQ(cuda::kv_append({shape, tokens, key.data(), value.data(), lengths.data(), actual.keys(), actual.values()},
                            type, nullptr),
            cudaSuccess);
  EXPECT_EQ(actual, expected);
}

TEST(CudaKvCache, AppendsWhatTheCpuDoes) {
  Random random(1);
  for (const FloatType type : {FloatType::kFloat32, FloatType::kBFloat16, FloatType::kFloat16}) {
    for (const KvCode code : kCodes) {
      for (const int64_t depth : {4, 64, 132}) expect_append({2, 3, 9, depth, code}, type, random);
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

float largest_value(KvCode code) {
  return code == KvCode::kInt8 ? 127.0f : code == KvCode::kFloat8E4M3 ? 448.0f : 57344.0f;
}

// Any finite code.
uint8_t random_code(KvCode code, Random& random) {
  if (code == KvCode::kInt8) return static_cast<uint8_t>(random.integer(-127, 127));
  const int64_t magnitude = random.integer(0, code == KvCode::kFloat8E4M3 ? 0x7e : 0x7b);
  return static_cast<uint8_t>(magnitude | (random.integer(0, 1) == 1 ? 0x80 : 0));
}

// Outputs are averages of values: an error is measured against the largest value.
void expect_attention(const KvCacheShape& shape, int64_t query_heads, const std::vector<int32_t>& lengths,
                      FloatType type, Random& random) {
  SCOPED_TRACE("code " + std::to_string(static_cast<int>(shape.code)) + ", depth " + std::to_string(shape.depth) +
               ", capacity " + std::to_string(shape.capacity) + ", " + std::to_string(query_heads) +
               " query heads, type " + std::to_string(static_cast<int>(type)));
  Cache cache(shape);
  const float unit = 127.0f / largest_value(shape.code);  // brings all kinds of codes to the range of int8
  for (uint8_t& code : cache.key) code = random_code(shape.code, random);
  for (uint8_t& code : cache.value) code = random_code(shape.code, random);
  for (float& s : cache.key_scale) s = random.uniform(0.001f, 0.02f) * unit;
  for (float& s : cache.value_scale) s = random.uniform(0.001f, 0.02f) * unit;
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
    for (const KvCode code : kCodes) {
      expect_attention({2, 2, 70, 64, code}, 4, {1, 65}, type, random);
      expect_attention({1, 1, 33, 128, code}, 9, {33}, type, random);
      expect_attention({3, 1, 40, 128, code}, 16, {0, 15, 17}, type, random);
    }
  }
}

// Every code of both formats, those of no number included, as the value of the only key; NaN in a key reaches all.
TEST(CudaKvCache, EveryFloat8CodeKeepsItsValue) {
  for (const KvCode code : {KvCode::kFloat8E4M3, KvCode::kFloat8E5M2}) {
    for (const FloatType type : {FloatType::kFloat32, FloatType::kFloat16}) {
      for (int first = 0; first < 256; first += 64) {
        const KvCacheShape shape{1, 1, 1, 64, code};
        Cache cache(shape);
        cache.key.assign(64, 0);
        for (int d = 0; d < 64; ++d) cache.value[d] = static_cast<uint8_t>(first + d);
        cache.key_scale = cache.value_scale = {1.0f};
        const std::vector<int32_t> lengths{1};
        const auto query = test::narrowed(std::vector<float>(64, 1.0f), type);
        std::vector<unsigned char> out(query.size());
        const KvAttentionArgs args{shape,          1,    query.data(), cache.keys(), cache.values(),
                                   lengths.data(), 1.0f, out.data()};
        std::vector<float> scratch(cuda::kv_attention_scratch_bytes(args) / sizeof(float));
        ASSERT_EQ(cuda::kv_attention(args, type, scratch.data(), nullptr), cudaSuccess);
        const auto values = test::widened(out, type);
        for (int d = 0; d < 64; ++d) {
          const auto stored = static_cast<uint8_t>(first + d);
          const float expected = code == KvCode::kFloat8E4M3 ? numerics::float8_value<numerics::Float8E4M3>(stored)
                                                             : numerics::float8_value<numerics::Float8E5M2>(stored);
          if (std::isfinite(expected)) {
            EXPECT_EQ(values[d], expected) << first + d;
          } else {
            EXPECT_FALSE(std::isfinite(values[d])) << first + d;
          }
        }
        cache.value.assign(64, 0);
        cache.key[17] = 0x7f;
        ASSERT_EQ(cuda::kv_attention(args, type, scratch.data(), nullptr), cudaSuccess);
        for (const float value : test::widened(out, type)) ASSERT_TRUE(std::isnan(value));
      }
    }
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
