// Observer arithmetic: averaged ranges, and histograms whose bins do not depend on the order of the data.
#include "numerics/stats.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <random>
#include <vector>

namespace torchquant::numerics {

// Beside the type, where argument-dependent lookup finds it.
static bool operator==(Range a, Range b) { return a.min_val == b.min_val && a.max_val == b.max_val; }

namespace {

constexpr float kInf = std::numeric_limits<float>::infinity();
constexpr float kMax = std::numeric_limits<float>::max();
constexpr float kDenormal = std::numeric_limits<float>::denorm_min();
constexpr Range kEmpty{kInf, -kInf};

Range range_of(const std::vector<float>& values) {
  Range range = kEmpty;
  for (float v : values) range = merge_ranges(range, {v, v});
  return range;
}

TEST(MovingAverage, FirstBatchSetsEmptyBatchKeepsAndOneReplaces) {
  EXPECT_EQ(moving_average(kEmpty, {-1.0f, 3.0f}, 0.01f), (Range{-1.0f, 3.0f}));
  EXPECT_EQ(moving_average({-1.0f, 3.0f}, kEmpty, 0.5f), (Range{-1.0f, 3.0f}));
  EXPECT_EQ(moving_average({-1.0f, 3.0f}, {-2.0f, 5.0f}, 0.5f), (Range{-1.5f, 4.0f}));
  // 1e8 + (0.1 - 1e8) is 0 in fp32: a constant of 1 must not compute it.
  EXPECT_EQ(moving_average({-1e8f, 1e8f}, {-0.1f, 0.1f}, 1.0f), (Range{-0.1f, 0.1f}));
}

TEST(MergeAverages, GivesEveryAverageTheSameSayInAnyOrder) {
  const AveragedRange a{{-1.0f, 1.0f}, 0}, b{{-2.0f, 3.0f}, 0}, c{{-6.0f, 5.0f}, 0}, nothing{kEmpty, 0};
  const AveragedRange left = merge_averages(merge_averages(a, b), merge_averages(c, nothing));
  const AveragedRange right = merge_averages(merge_averages(nothing, c), merge_averages(b, a));
  for (const AveragedRange& merged : {left, right}) {
    EXPECT_FLOAT_EQ(merged.range.min_val, -3.0f);
    EXPECT_FLOAT_EQ(merged.range.max_val, 3.0f);
    EXPECT_EQ(merged.merged, 2);
  }
}

TEST(HistogramGrid, WidthIsTheSmallestPowerOfTwoThatFits) {
  EXPECT_EQ(histogram_grid({0.0f, 1.0f}, 1024).exponent, -10);  // (0, 1] in 1024 bins of 2^-10
  EXPECT_EQ(histogram_grid({0.0f, std::nextafter(1.0f, 2.0f)}, 1024).exponent, -9);
  EXPECT_EQ(histogram_grid({-1.0f, 1.0f}, 1024).exponent, -9);
  EXPECT_EQ(histogram_grid({-1.0f, 1.0f}, 1024).negative, 512);
  EXPECT_EQ(histogram_grid({-1.0f, 1.0f}, 1025).exponent, -9);
  EXPECT_EQ(histogram_grid({100.0f, 101.0f}, 1024).exponent, -3);  // zero is always inside
}

TEST(HistogramGrid, HoldsBothEndsOfEveryRange) {
  const std::vector<float> ends{-kMax,     -1e30f, -3.0f, -1.0f, -kDenormal, 0.0f,
                                kDenormal, 1e-30f, 0.3f,  1.0f,  7.0f,       kMax};
  for (int32_t bins : {kMinHistogramBins, 17, 2048, 4096, kMaxHistogramBins}) {
    for (float lo : ends) {
      for (float hi : ends) {
        if (lo > hi) continue;
        const HistogramGrid grid = histogram_grid({lo, hi}, bins);
        for (float x : {lo, hi, 0.5f * lo, 0.5f * hi}) {
          if (x < lo || x > hi) continue;
          EXPECT_GE(bin_of(x, grid), 0) << x << " in [" << lo << ", " << hi << "], " << bins << " bins";
          EXPECT_LT(bin_of(x, grid), bins) << x << " in [" << lo << ", " << hi << "], " << bins << " bins";
        }
      }
    }
  }
}

TEST(HistogramGrid, EmptyRangeHasAGrid) {
  const HistogramGrid grid = histogram_grid(kEmpty, 64);
  EXPECT_EQ(grid.exponent, kMinHistogramExponent);
  EXPECT_EQ(bin_of(0.0f, grid), 0);
}

TEST(BinOf, EdgesBelongToTheInnerBinAndZeroIsAnEdge) {
  const HistogramGrid grid = histogram_grid({-1.0f, 1.0f}, 16);  // width 1/8
  EXPECT_EQ(bin_of(0.0f, grid), 8);
  EXPECT_EQ(bin_of(-0.0f, grid), 8);
  EXPECT_EQ(bin_of(kDenormal, grid), 8);
  EXPECT_EQ(bin_of(-1e-6f, grid), 7);
  EXPECT_EQ(bin_of(0.125f, grid), 8);
  EXPECT_EQ(bin_of(std::nextafter(0.125f, 1.0f), grid), 9);
  EXPECT_EQ(bin_of(-0.125f, grid), 7);
  EXPECT_EQ(bin_of(1.0f, grid), 15);
  EXPECT_EQ(bin_of(-1.0f, grid), 0);
}

// Counts after `batches` in order, the grid growing with each.
std::vector<int64_t> grow(const std::vector<std::vector<float>>& batches, int32_t bins) {
  std::vector<int64_t> counts(bins, 0);
  Range seen = kEmpty;
  for (const auto& batch : batches) {
    const HistogramGrid from = histogram_grid(seen, bins);
    seen = merge_ranges(seen, range_of(batch));
    const HistogramGrid to = histogram_grid(seen, bins);
    std::vector<int64_t> moved(bins, 0);
    for (int32_t bin = 0; bin < bins; ++bin) {
      if (counts[bin] != 0) moved.at(rebin(bin, from, to)) += counts[bin];
    }
    for (float x : batch) ++moved.at(bin_of(x, to));
    counts = moved;
  }
  return counts;
}

TEST(Rebin, GrowingInAnyOrderGivesTheCountsOfOnePass) {
  std::mt19937 rng(7);
  for (int trial = 0; trial < 200; ++trial) {
    std::vector<std::vector<float>> batches(4);
    std::vector<float> all;
    for (auto& batch : batches) {
      // Scales far apart, values on bin edges, zeros and one-sided batches.
      const float scale = std::ldexp(1.0f, std::uniform_int_distribution<int>(-140, 100)(rng));
      std::uniform_int_distribution<int> steps(trial % 3 == 0 ? 0 : -64, 64);
      for (int i = 0; i < 50; ++i) batch.push_back(static_cast<float>(steps(rng)) / 32.0f * scale);
      all.insert(all.end(), batch.begin(), batch.end());
    }
    const std::vector<int64_t> expected = grow({all}, 64);
    ASSERT_EQ(grow(batches, 64), expected) << "trial " << trial;
    std::reverse(batches.begin(), batches.end());
    ASSERT_EQ(grow(batches, 64), expected) << "trial " << trial;
  }
}

}  // namespace
}  // namespace torchquant::numerics
