// Source positions and weights of linear interpolation, by hand; tests/python/test_quantized_ops.py compares with
// PyTorch.
#include "numerics/resize.h"

#include <gtest/gtest.h>

namespace torchquant::numerics {
namespace {

LinearTap tap(int64_t in_size, int64_t out_size, int64_t out, bool align_corners, double scale_factor = 0.0) {
  const float ratio = resize_ratio(in_size, out_size, align_corners, scale_factor);
  return linear_tap(in_size, out_size, out, ratio, align_corners);
}

void expect_tap(const LinearTap& actual, int64_t first, int64_t second, float weight) {
  EXPECT_EQ(actual.index[0], first);
  EXPECT_EQ(actual.index[1], second);
  EXPECT_EQ(actual.weight[0], 1.0f - weight);
  EXPECT_EQ(actual.weight[1], weight);
}

TEST(LinearTap, HandComputedPositions) {
  // (o + 0.5) / 2 - 0.5 of 0, 1, 2, 7 is -0.25, 0.25, 0.75, 3.25
  expect_tap(tap(4, 8, 0, false), 0, 1, 0.0f);
  expect_tap(tap(4, 8, 1, false), 0, 1, 0.25f);
  expect_tap(tap(4, 8, 2, false), 0, 1, 0.75f);
  expect_tap(tap(4, 8, 7, false), 3, 3, 0.25f);
  // Corners on corners: 3 o / 6
  expect_tap(tap(4, 7, 0, true), 0, 1, 0.0f);
  expect_tap(tap(4, 7, 3, true), 1, 2, 0.5f);
  expect_tap(tap(4, 7, 6, true), 3, 3, 0.0f);
  expect_tap(tap(4, 1, 0, true), 0, 1, 0.0f);
}

TEST(LinearTap, EqualSizesCopyAndOnePixelSpreads) {
  for (int64_t out = 0; out < 5; ++out) {
    expect_tap(tap(5, 5, out, false), out, out, 0.0f);
    EXPECT_EQ(tap(1, 5, out, false).index[1], 0);
  }
}

// The user's factor, not the quotient of the sizes: 7 * 1.5 = 10.5 is cut to 10 positions.
TEST(LinearTap, AScaleFactorSetsTheRatio) {
  EXPECT_EQ(resize_ratio(7, 10, false, 1.5), static_cast<float>(1.0 / 1.5));
  EXPECT_EQ(resize_ratio(7, 10, false, 0.0), 0.7f);
  EXPECT_EQ(resize_ratio(7, 10, true, 1.5), 6.0f / 9.0f);
}

TEST(Interpolate, RoundsTheSumOnce) {
  const LinearTap third{{0, 1}, {2.0f / 3.0f, 1.0f / 3.0f}};
  EXPECT_EQ(interpolate(100.0f, 7.0f, third), fmaf(7.0f, third.weight[1], 100.0f * third.weight[0]));
  EXPECT_EQ(interpolate(5.0f, 9.0f, {{0, 0}, {1.0f, 0.0f}}), 5.0f);
}

}  // namespace
}  // namespace torchquant::numerics
