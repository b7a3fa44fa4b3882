// Which of the 16 lanes of a vector a step works on. Used by kernels/cpu/vector_*.h and the kernels written over them.
#pragma once

#include <cstdint>

#include "numerics/macros.h"

// Inlines the lambdas of a kernel and all that they call, so that its loop is one loop over registers.
#define TQ_KERNEL __attribute__((flatten))

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

// store(i, value(i, lanes), lanes) for i = 0, 16, 32, ..., with all loads of kBatch steps before their first store. Two
// buffers of one allocator often lie a few bytes apart modulo 4096, and a store that is just ahead of the next loads
// then looks to the CPU like one that they depend on: step by step, such a pair takes twice as long (4 KB aliasing).
template <int kBatch, typename Value, typename Store>
TQ_HOST_DEVICE void map_vectors(int64_t n, Value&& value, Store&& store) {
  int64_t i = 0;
  for (; i + kBatch * kLanes <= n; i += kBatch * kLanes) {
    decltype(value(i, AllLanes{})) results[kBatch];
#pragma GCC unroll 8
    for (int step = 0; step < kBatch; ++step) results[step] = value(i + step * kLanes, AllLanes{});
#pragma GCC unroll 8
    for (int step = 0; step < kBatch; ++step) store(i + step * kLanes, results[step], AllLanes{});
  }
  for (; i + kLanes <= n; i += kLanes) store(i, value(i, AllLanes{}), AllLanes{});
  if (i < n) {
    const FirstLanes lanes{static_cast<int>(n - i)};
    store(i, value(i, lanes), lanes);
  }
}

}  // namespace torchquant::kernels
