// Which of the 16 lanes of a vector a step works on. Used by kernels/cpu/vector_*.h and the kernels written over them.
#pragma once

#include <cstdint>

#include "numerics/macros.h"

namespace torchquant::kernels {

inline constexpr int kLanes = 16;

struct AllLanes {
  static constexpr int count = kLanes;
};

// Lanes [0, count), 0 < count < 16: the end of a run. Loads leave zero in the other lanes and stores do not touch them.
struct FirstLanes {
  int count;
};

// body(i, lanes) for i = 0, 16, 32, ...; only the last step may have FirstLanes. As in with_float_type, every caller's
// lambda makes this function its own.
template <typename Body>
TQ_HOST_DEVICE void for_each_vector(int64_t n, Body&& body) {
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) body(i, AllLanes{});
  if (i < n) body(i, FirstLanes{static_cast<int>(n - i)});
}

}  // namespace torchquant::kernels
