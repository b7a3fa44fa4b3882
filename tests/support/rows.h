// Rows of floats that every kernel of rows must take. Used by the tests of quantize_rows and of the fp8 kernels.
#pragma once

#include <cstdint>
#include <limits>
#include <vector>

#include "support/rng.h"

namespace torchquant::test {

// Calls check(row) for each of them.
template <typename Check>
void for_rows_of_every_length(const Check& check) {
  Random random(1);
  for (int64_t n = 0; n <= 130; ++n) {
    std::vector<float> x(n);
    for (float& v : x) v = random.bell(3.0f);
    check(x);
  }
}

template <typename Check>
void for_rows_of_any_bits(const Check& check) {
  Random random(2);
  for (int round = 0; round < 200; ++round) {
    std::vector<float> x(67);
    for (float& v : x) v = random.any_float();
    check(x);
  }
}

template <typename Check>
void for_special_rows(const Check& check) {
  using Limits = std::numeric_limits<float>;
  constexpr float kInf = Limits::infinity();
  constexpr float kNan = Limits::quiet_NaN();
  for (const std::vector<float>& x : std::vector<std::vector<float>>{{0.0f, -0.0f, 0.0f},
                                                                     {kInf, -kInf, kNan},
                                                                     {kInf, 1.0f, -2.0f, kNan, -kInf, 0.5f},
                                                                     {Limits::max(), -1.0f},
                                                                     {Limits::denorm_min(), 0.0f}}) {
    check(x);
  }
}

}  // namespace torchquant::test
