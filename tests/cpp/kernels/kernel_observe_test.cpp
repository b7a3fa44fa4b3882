// The histogram kernels against one value at a time.
#include "kernels/observe.h"

#include <gtest/gtest.h>

#include <limits>
#include <random>
#include <vector>

namespace torchquant::kernels {
namespace {

using numerics::HistogramGrid;
using numerics::Range;

constexpr int32_t kBins = 64;
constexpr float kInf = std::numeric_limits<float>::infinity();
constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();

TEST(CountIntoBins, CountsFiniteValuesOfEveryLength) {
  std::mt19937 rng(3);
  std::normal_distribution<float> draw(0.0f, 2.0f);
  for (int64_t n : {0, 1, 3, 1023, 1024, 1025, 5000}) {
    std::vector<float> x(n);
    Range range{kInf, -kInf};
    for (float& v : x) {
      v = draw(rng);
      range = numerics::merge_ranges(range, {v, v});
    }
    const HistogramGrid grid = numerics::histogram_grid(range, kBins);
    std::vector<int64_t> expected(kBins, 5);
    for (float v : x) ++expected[numerics::bin_of(v, grid)];
    for (float bad : {kNaN, kInf, -kInf}) x.insert(x.begin() + static_cast<int64_t>(x.size()) / 2, bad);
    std::vector<int64_t> counts(kBins, 5);
    count_into_bins(x.data(), static_cast<int64_t>(x.size()), grid, counts.data());
    EXPECT_EQ(counts, expected) << n << " values";
  }
}

TEST(AddRebinned, MovesEveryCountToTheBinOfItsValues) {
  const HistogramGrid from = numerics::histogram_grid({-1.0f, 0.5f}, kBins);
  const HistogramGrid to = numerics::histogram_grid({-1.0f, 9.0f}, kBins);
  const std::vector<float> x{-1.0f, -0.51f, -0.01f, 0.0f, 0.01f, 0.25f, 0.49f, 0.5f};
  std::vector<int64_t> before(kBins, 0), after(kBins, 1), expected(kBins, 1);
  count_into_bins(x.data(), static_cast<int64_t>(x.size()), from, before.data());
  count_into_bins(x.data(), static_cast<int64_t>(x.size()), to, expected.data());
  add_rebinned(before.data(), from, after.data(), to);
  EXPECT_EQ(after, expected);
}

}  // namespace
}  // namespace torchquant::kernels
