// Histogram kernels of the CPU, portable; observation belongs to calibration, so one version serves every instruction
// set.
#include "kernels/observe.h"

#include <algorithm>
#include <cmath>

namespace torchquant::kernels {

void count_into_bins(const float* x, int64_t n, numerics::HistogramGrid grid, int64_t* counts) {
  // Bin numbers of a block first: that loop has no stores that depend on each other, so the compiler vectorizes it.
  constexpr int64_t kBlock = 1024;
  int32_t bins[kBlock];
  for (int64_t begin = 0; begin < n; begin += kBlock) {
    const int64_t count = std::min(kBlock, n - begin);
    for (int64_t i = 0; i < count; ++i) {
      const float v = x[begin + i];
      const bool finite = std::fabs(v) <= 3.4028234663852886e38f;
      bins[i] = finite ? numerics::bin_of(finite ? v : 0.0f, grid) : -1;
    }
    for (int64_t i = 0; i < count; ++i) {
      if (bins[i] >= 0) ++counts[bins[i]];
    }
  }
}

void add_rebinned(const int64_t* from_counts, numerics::HistogramGrid from, int64_t* to_counts,
                  numerics::HistogramGrid to) {
  for (int32_t bin = 0; bin < from.bins; ++bin) {
    if (from_counts[bin] != 0) to_counts[numerics::rebin(bin, from, to)] += from_counts[bin];
  }
}

}  // namespace torchquant::kernels
