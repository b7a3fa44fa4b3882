// Byte-wise comparison of what two kernels wrote. Used by the tests of the CUDA kernels.
#pragma once

#include <gtest/gtest.h>

#include <cstdint>
#include <cstring>
#include <functional>
#include <vector>

#include "support/pitched_image.h"

namespace torchquant::test {

// Runs both on buffers of `bytes` bytes, with a guard behind them, and compares every byte; with `floats`, NaN may
// differ in its payload.
inline void expect_same_bytes(int64_t bytes, bool floats, const std::function<void(uint8_t*)>& reference,
                              const std::function<void(uint8_t*)>& tested) {
  const auto size = static_cast<size_t>(bytes) + 64;
  std::vector<uint8_t> want(size, kUntouched), got(size, kUntouched);
  reference(want.data());
  tested(got.data());
  const size_t step = floats ? 4 : 1;
  for (size_t i = 0; i < size; i += step) {
    float a = 0.0f, b = 0.0f;
    if (floats) {
      memcpy(&a, &want[i], sizeof(a));
      memcpy(&b, &got[i], sizeof(b));
      if (a != a && b != b) continue;
    }
    ASSERT_EQ(memcmp(&want[i], &got[i], step), 0)
        << "element " << i / step << " of " << static_cast<size_t>(bytes) / step << ": reference " << int{want[i]}
        << " (" << a << "), got " << int{got[i]} << " (" << b << ")";
  }
}

}  // namespace torchquant::test
