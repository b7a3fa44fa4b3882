// Random numbers that are the same on every machine and compiler, unlike the distributions of <random>. Used by C++
// tests and benchmarks; a failing test prints its seed or its input.
#pragma once

#include <cmath>
#include <cstdint>
#include <vector>

#include "numerics/float16.h"

namespace torchquant::test {

// SplitMix64 (Steele, Lea and Flood, 2014).
class Random {
 public:
  explicit Random(uint64_t seed) : state_(seed) {}

  uint64_t bits() {
    uint64_t z = state_ += 0x9e3779b97f4a7c15u;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
  }

  int64_t integer(int64_t lo, int64_t hi) {  // both ends included
    return lo + static_cast<int64_t>(bits() % static_cast<uint64_t>(hi - lo + 1));
  }

  float uniform(float lo, float hi) { return lo + (hi - lo) * static_cast<float>(bits() >> 40) * 0x1p-24f; }

  // Sum of four uniform values: bell-shaped, standard deviation about `spread`, no libm.
  float bell(float spread) {
    return (uniform(-1, 1) + uniform(-1, 1) + uniform(-1, 1) + uniform(-1, 1)) * 0.866f * spread;
  }

  // Any bit pattern: every exponent is as likely as another, NaN and subnormal numbers included.
  float any_float() { return numerics::bits_to_float(static_cast<uint32_t>(bits() >> 32)); }

 private:
  uint64_t state_;
};

inline std::vector<float> bell_values(int64_t n, float spread, uint64_t seed) {
  Random random(seed);
  std::vector<float> values(n);
  for (float& value : values) value = random.bell(spread);
  return values;
}

}  // namespace torchquant::test
