// Raw-pointer histogram kernels; called by the observer ops, which give them one channel at a time.
#pragma once

#include <cstdint>

#include "numerics/stats.h"

namespace torchquant::kernels {

// counts[bin_of(x[i])] += 1 for each of the n values that is finite; the grid's range contains them all.
void count_into_bins(const float* x, int64_t n, numerics::HistogramGrid grid, int64_t* counts);

// Adds the counts of grid `from` to those of grid `to`, whose range contains from's. Both have `bins` bins.
void add_rebinned(const int64_t* from_counts, numerics::HistogramGrid from, int64_t* to_counts,
                  numerics::HistogramGrid to);

}  // namespace torchquant::kernels
