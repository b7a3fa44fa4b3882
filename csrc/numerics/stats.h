// Observer state as scalar formulas: running and averaged ranges, and the bins of a histogram that grows. Called by the
// observer kernels of every device and by observers that merge; numerics/histogram_search.h turns a histogram into a
// range.
#pragma once

#include <cmath>
#include <cstdint>

#include "numerics/macros.h"

namespace torchquant::numerics {

// Range of the finite values seen. min_val = +inf, max_val = -inf where none was.
struct Range {
  float min_val;
  float max_val;

  TQ_HOST_DEVICE bool empty() const { return min_val > max_val; }
};

// Running min-max, and the merge of two: exact, in any order.
TQ_HOST_DEVICE Range merge_ranges(Range a, Range b) {
  return {fminf(a.min_val, b.min_val), fmaxf(a.max_val, b.max_val)};
}

// m += averaging_constant * (batch - m). The first batch sets the range, an empty batch leaves it, and a constant of 1
// takes the batch as it is (m + (batch - m) would round).
TQ_HOST_DEVICE Range moving_average(Range running, Range batch, float averaging_constant) {
  if (batch.empty()) return running;
  if (running.empty() || averaging_constant >= 1.0f) return batch;
  return {running.min_val + averaging_constant * (batch.min_val - running.min_val),
          running.max_val + averaging_constant * (batch.max_val - running.max_val)};
}

// A moving average, or the merge of `merged` + 1 of them.
struct AveragedRange {
  Range range;
  int64_t merged;
};

// Mean of all the averages merged so far, each with the same say, so that merging is order-free up to fp32 rounding. An
// average that saw nothing has no say.
TQ_HOST_DEVICE AveragedRange merge_averages(AveragedRange a, AveragedRange b) {
  if (b.range.empty()) return a;
  if (a.range.empty()) return b;
  const float a_count = static_cast<float>(a.merged + 1);
  const float b_count = static_cast<float>(b.merged + 1);
  return {moving_average(a.range, b.range, b_count / (a_count + b_count)), a.merged + b.merged + 1};
}

// Bins of a histogram, a function of the range seen and the number of bins alone:
//   - the bin width is a power of two, the smallest with which the range and zero fit;
//   - zero is a bin edge; bin `negative + m` holds (m * width, (m + 1) * width] (and zero itself, for m = 0) and bin
//     `negative - 1 - m` mirrors it, for m = 0, 1, ...
// A growing range therefore only doubles the width, which adds neighbouring counts, and shifts: the counts are those
// that one pass over all the data with the final bins would give, whatever the order of batches and merges.
struct HistogramGrid {
  int32_t exponent;  // width = 2^exponent
  float inv_width;
  int32_t negative;  // bins below zero
  int32_t bins;
};

inline constexpr int32_t kMinHistogramBins = 16;
inline constexpr int32_t kMaxHistogramBins = 1 << 20;   // bin numbers stay exact in fp32
inline constexpr int32_t kMinHistogramExponent = -120;  // width far below kMinScale; 1 / width stays finite

// Bins that values of magnitude up to `end` occupy; tiny ones too, although end / width may underflow to zero.
TQ_HOST_DEVICE int32_t bins_up_to(float end, float inv_width) {
  return end > 0.0f ? static_cast<int32_t>(fmaxf(ceilf(end * inv_width), 1.0f)) : 0;
}

TQ_HOST_DEVICE HistogramGrid histogram_grid(Range range, int32_t bins) {
  const float below = range.empty() ? 0.0f : fmaxf(-range.min_val, 0.0f);
  const float above = range.empty() ? 0.0f : fmaxf(range.max_val, 0.0f);
  int32_t exponent = kMinHistogramExponent;
  const float largest = fmaxf(below, above);
  if (largest > 0.0f) {
    // A width that is too small by a factor of at most eight: three or four doublings find the right one.
    int32_t floor_log2_bins = 0;
    while ((bins >> (floor_log2_bins + 1)) != 0) ++floor_log2_bins;
    const int32_t start = ilogbf(largest) - floor_log2_bins - 1;
    exponent = start > kMinHistogramExponent ? start : kMinHistogramExponent;
  }
  for (;; ++exponent) {
    const float inv_width = ldexpf(1.0f, -exponent);
    const int32_t negative = bins_up_to(below, inv_width);
    const int32_t positive = bins_up_to(above, inv_width);
    if (negative + (positive > 0 ? positive : 1) <= bins) return {exponent, inv_width, negative, bins};
  }
}

// Bin of a finite value inside the grid's range.
TQ_HOST_DEVICE int32_t bin_of(float x, HistogramGrid grid) {
  const float t = fabsf(x) * grid.inv_width;
  int32_t m = static_cast<int32_t>(t);
  m -= static_cast<int32_t>((static_cast<float>(m) == t) & (m > 0));  // a value on an edge belongs to the inner bin
  return x < 0.0f ? grid.negative - 1 - m : grid.negative + m;
}

// Where the counts of bin `bin` of grid `from` go in grid `to`, whose range contains from's.
TQ_HOST_DEVICE int32_t rebin(int32_t bin, HistogramGrid from, HistogramGrid to) {
  const int32_t doublings = to.exponent - from.exponent < 31 ? to.exponent - from.exponent : 31;
  if (bin < from.negative) return to.negative - 1 - ((from.negative - 1 - bin) >> doublings);
  return to.negative + ((bin - from.negative) >> doublings);
}

}  // namespace torchquant::numerics
