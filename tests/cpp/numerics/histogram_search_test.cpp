// Percentile, squared-error and entropy search against plain computations of what each one is defined to be.
#include "numerics/histogram_search.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <random>
#include <vector>

namespace torchquant::numerics {
namespace {

constexpr QRange kUint8{0.0f, 255.0f};
constexpr QRange kInt8{-127.0f, 127.0f};
constexpr QRange kInt4{-7.0f, 7.0f};

struct Data {
  std::vector<float> values;
  std::vector<int64_t> counts;
  Histogram histogram;

  Data(std::vector<float> v, int32_t bins) : values(std::move(v)), counts(bins, 0) {
    Range range{INFINITY, -INFINITY};
    for (float x : values) range = merge_ranges(range, {x, x});
    histogram = {counts.data(), range, histogram_grid(range, bins)};
    for (float x : values) ++counts[bin_of(x, histogram.grid)];
  }
  Data(const Data&) = delete;

  float width() const { return std::ldexp(1.0f, histogram.grid.exponent); }
  Range mse(bool symmetric, QRange codes) const {
    std::vector<Moments> scratch(counts.size() + 1);
    return mse_range(histogram, symmetric, codes, scratch.data());
  }
  Range entropy(bool symmetric, QRange codes) const {
    std::vector<EntropySums> scratch(counts.size() + 1);
    return entropy_range(histogram, symmetric, codes, scratch.data());
  }
  // Mean squared error of the values themselves.
  double error_of(Range range, bool symmetric, QRange codes) const {
    const ScaleZeroPoint chosen = choose_qparams(range.min_val, range.max_val, symmetric, codes);
    const QParams p = make_qparams(chosen.scale, chosen.zero_point, codes);
    double sum = 0.0;
    for (float x : values) sum += std::pow(static_cast<double>(fake_quantize_value(x, p, codes)) - x, 2);
    return sum / values.size();
  }
};

std::vector<float> normal(int count, float mean, float deviation, unsigned seed = 1) {
  std::mt19937 rng(seed);
  std::normal_distribution<float> draw(mean, deviation);
  std::vector<float> values(count);
  for (float& v : values) v = draw(rng);
  return values;
}

std::vector<float> with(std::vector<float> values, std::initializer_list<float> more) {
  values.insert(values.end(), more);
  return values;
}

std::vector<float> relu(std::vector<float> values) {
  for (float& v : values) v = std::max(v, 0.0f);
  return values;
}

// ---- logarithm

TEST(NaturalLog, IsWithinTwoUnitsInTheLastPlace) {
  for (double x = 1e-12; x < 1e18; x *= 1.0000371) {
    const double expected = std::log(x);
    ASSERT_NEAR(natural_log(x), expected, 2.0 * std::abs(std::nextafter(expected, INFINITY) - expected) + 1e-16) << x;
  }
  EXPECT_EQ(natural_log(1.0), 0.0);
}

// ---- percentile

TEST(Percentile, CutsEachTailAndAHundredKeepsAll) {
  std::vector<float> values;
  for (int i = -500; i <= 1500; ++i) values.push_back(static_cast<float>(i));
  const Data data(values, 4096);
  const Range all = percentile_range(data.histogram, 100.0, false);
  EXPECT_EQ(all.min_val, -500.0f);
  EXPECT_EQ(all.max_val, 1500.0f);
  const Range range = percentile_range(data.histogram, 99.0, false);  // 20 of 2001 off each end
  EXPECT_NEAR(range.min_val, -480.0f, 2.0f * data.width());
  EXPECT_NEAR(range.max_val, 1480.0f, 2.0f * data.width());
}

TEST(Percentile, SymmetricCutsMagnitudes) {
  std::vector<float> values;
  for (int i = -500; i <= 1500; ++i) values.push_back(static_cast<float>(i));
  const Data data(values, 4096);
  const Range range = percentile_range(data.histogram, 99.0, true);
  EXPECT_NEAR(range.max_val, 1480.0f, 2.0f * data.width());
  EXPECT_EQ(range.min_val, -range.max_val);
}

TEST(Percentile, ASideThatHoldsLessThanTheCutEndsAtZero) {
  const Data data(with(relu(normal(10000, 0.0f, 1.0f)), {-5.0f}), 2048);
  EXPECT_EQ(percentile_range(data.histogram, 99.9, false).min_val, 0.0f);
  EXPECT_EQ(percentile_range(data.histogram, 100.0, false).min_val, -5.0f);
}

// ---- mean squared error

// The definition, by sampling every bin densely.
double sampled_error(const Data& data, Range range, bool symmetric, QRange codes) {
  constexpr int kSamples = 64;
  const ScaleZeroPoint chosen = choose_qparams(range.min_val, range.max_val, symmetric, codes);
  const QParams p = make_qparams(chosen.scale, chosen.zero_point, codes);
  double error = 0.0;
  for (int32_t bin = 0; bin < data.histogram.grid.bins; ++bin) {
    for (int i = 0; i < kSamples && data.counts[bin] > 0; ++i) {
      const double x = (bin - data.histogram.grid.negative + (i + 0.5) / kSamples) * data.width();
      const double difference = fake_quantize_value(static_cast<float>(x), p, codes) - x;
      error += data.counts[bin] * difference * difference / kSamples;
    }
  }
  return error / (static_cast<double>(data.width()) * data.width());
}

TEST(SquaredError, EqualsTheErrorOfEvenlySpreadValues) {
  const Data data(with(normal(5000, 0.3f, 1.0f), {9.0f}), 256);
  std::vector<Moments> prefix(257);
  fill_moments(data.histogram, prefix.data());
  for (QRange codes : {kUint8, kInt8, kInt4}) {
    for (bool symmetric : {false, true}) {
      for (float part : {0.2f, 0.7f, 1.0f}) {
        const Range range{-4.0f * part, 9.0f * part};
        const double expected = sampled_error(data, range, symmetric, codes);
        EXPECT_NEAR(squared_error(data.histogram, prefix.data(), range, symmetric, codes), expected, 0.02 * expected);
      }
    }
  }
}

TEST(MseRange, ClipsOutliersWhenThatCostsLessThanCoarserSteps) {
  const Data data(with(normal(20000, 0.0f, 1.0f), {30.0f, -12.0f}), 4096);
  const Range full{-12.0f, 30.0f};
  const Range four_bits = data.mse(false, kInt4);
  EXPECT_LT(four_bits.max_val, 15.0f);
  EXPECT_LT(data.error_of(four_bits, false, kInt4), 0.7 * data.error_of(full, false, kInt4));
  // With 8 bits the steps are fine enough that clipping 30 to 15 would cost more: 15^2 / 20000 against (42 / 255)^2
  // / 12.
  EXPECT_GT(data.mse(false, kUint8).max_val, 25.0f);
}

TEST(MseRange, IsWithinAFewPercentOfAnExhaustiveSearch) {
  for (QRange codes : {kUint8, kInt4}) {
    for (const auto& values : {with(normal(4000, 0.5f, 1.0f), {25.0f, -3.0f}), relu(normal(4000, 0.0f, 2.0f))}) {
      const Data data(values, 2048);
      const Range full = full_range(data.histogram);
      double least = INFINITY;
      for (int lo = 0; lo <= 40; ++lo) {
        for (int hi = 1; hi <= 40; ++hi) {
          const Range range{full.min_val * lo / 40.0f, full.max_val * hi / 40.0f};
          least = std::min(least, data.error_of(range, false, codes));
        }
      }
      EXPECT_LT(data.error_of(data.mse(false, codes), false, codes), 1.05 * least);
    }
  }
}

TEST(MseRange, SymmetricRangesAndUniformData) {
  std::vector<float> values;
  for (int i = -1000; i <= 1000; ++i) values.push_back(static_cast<float>(i) / 1000.0f);
  const Data data(values, 2048);
  EXPECT_GT(data.mse(true, kInt8).max_val, 0.97f);  // nothing to gain from clipping
  EXPECT_GT(data.mse(false, kUint8).max_val, 0.97f);
}

// ---- entropy

// KL(P || Q) from the arrays that Migacz describes.
double plain_divergence(const Data& data, Window window, int32_t codes) {
  const int32_t width = window.last - window.first;
  std::vector<double> inside(width), p(width), q(width, 0.0);
  double left = 0.0, right = 0.0;
  for (int32_t bin = 0; bin < data.histogram.grid.bins; ++bin) {
    const double count = entropy_count(data.histogram, bin);
    if (bin < window.first)
      left += count;
    else if (bin >= window.last)
      right += count;
    else
      inside[bin - window.first] = count;
  }
  p = inside;
  p.front() += left;
  p.back() += right;
  for (int32_t code = 0; code < codes; ++code) {
    const int32_t first = static_cast<int64_t>(code) * width / codes;
    const int32_t last = static_cast<int64_t>(code + 1) * width / codes;
    double sum = 0.0;
    int occupied = 0;
    for (int32_t i = first; i < last; ++i) sum += inside[i], occupied += p[i] > 0.0;
    for (int32_t i = first; i < last; ++i) q[i] = p[i] > 0.0 ? sum / occupied : 0.0;
  }
  double p_total = 0.0, q_total = 0.0, kl = 0.0;
  for (int32_t i = 0; i < width; ++i) p_total += p[i], q_total += q[i];
  for (int32_t i = 0; i < width; ++i) {
    if (p[i] > 0.0) kl += p[i] / p_total * std::log((p[i] / p_total) / (q[i] / q_total));
  }
  return kl;
}

TEST(Divergence, EqualsThePlainComputation) {
  const Data data(with(relu(normal(3000, 0.2f, 1.0f)), {-2.5f, -0.7f, 6.0f}), 512);
  std::vector<EntropySums> prefix(513);
  fill_entropy_sums(data.histogram, prefix.data());
  const Range full = full_range(data.histogram);
  int compared = 0;
  for (bool symmetric : {false, true}) {
    for (int32_t half_width = 20; half_width <= 400; half_width += 7) {
      const Window window = candidate_window(data.histogram, full, half_width, symmetric);
      const Window inside{std::max(window.first, 0), std::min(window.last, 512)};
      if (symmetric && (inside.first != window.first || inside.last != window.last))
        continue;  // the plain one has no such bins
      const double expected = plain_divergence(data, window, 16);
      const double got = divergence(data.histogram, prefix.data(), window, 16);
      if (std::isinf(expected)) {
        EXPECT_TRUE(std::isinf(got));
      } else {
        EXPECT_NEAR(got, expected, 1e-9 * (1.0 + expected)) << "half width " << half_width;
        ++compared;
      }
    }
  }
  EXPECT_GT(compared, 20);
}

TEST(EntropyRange, ClipsALongSparseTailButNotAFullRange) {
  std::vector<float> tailed = relu(normal(100000, 0.0f, 1.0f));
  for (int i = 0; i < 20; ++i) tailed.push_back(10.0f + i);
  const Data data(tailed, 4096);
  const Range range = data.entropy(false, kUint8);
  EXPECT_EQ(range.min_val, 0.0f);
  EXPECT_GT(range.max_val, 2.0f);
  EXPECT_LT(range.max_val, 10.0f);

  std::vector<float> uniform;
  for (int i = 0; i < 50000; ++i) uniform.push_back(static_cast<float>(i) / 50000.0f);
  EXPECT_GT(Data(uniform, 4096).entropy(false, kUint8).max_val, 0.95f);
}

TEST(EntropyRange, FewerBinsThanCodesKeepsTheFullRange) {
  const Data data(normal(1000, 0.0f, 1.0f), 64);
  const Range range = data.entropy(false, kUint8);
  EXPECT_EQ(range.min_val, data.histogram.range.min_val);
  EXPECT_EQ(range.max_val, data.histogram.range.max_val);
}

// ---- all of them

TEST(EverySearch, HandlesEmptyZeroAndSingleValuedData) {
  for (const std::vector<float>& values :
       {std::vector<float>{}, {0.0f, 0.0f}, {-3.0f, -3.0f}, {1e-42f}, {3e38f, -3e38f}}) {
    const Data data(values, 2048);
    const Range full = full_range(data.histogram);
    for (bool symmetric : {false, true}) {
      for (const Range& range : {percentile_range(data.histogram, 99.9, symmetric), data.mse(symmetric, kInt8),
                                 data.entropy(symmetric, kInt8)}) {
        const float largest = std::max(-full.min_val, full.max_val);
        EXPECT_LE(range.min_val, 0.0f);
        EXPECT_GE(range.max_val, 0.0f);
        EXPECT_LE(std::max(-range.min_val, range.max_val), largest);
        EXPECT_TRUE(std::isfinite(range.min_val) && std::isfinite(range.max_val));
      }
    }
  }
}

}  // namespace
}  // namespace torchquant::numerics
