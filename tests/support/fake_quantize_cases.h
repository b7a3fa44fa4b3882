// Inputs of the training kernels that reach every branch of the contract. Used by their tests and benchmarks.
#pragma once

#include <cmath>
#include <limits>
#include <ostream>
#include <vector>

#include "kernels/fake_quantize.h"
#include "support/rng.h"

namespace torchquant::test {

struct FakeQuantizeCase {
  float scale;
  float zero_point;
  numerics::QRange range;

  numerics::QParams qparams() const { return numerics::make_qparams(scale, zero_point, range); }
};

inline std::ostream& operator<<(std::ostream& out, const FakeQuantizeCase& c) {
  return out << "scale " << c.scale << ", zero point " << c.zero_point << ", range [" << c.range.quant_min << ", "
             << c.range.quant_max << "]";
}

// Odd zero points tell rounding before the zero point from rounding after it; the huge and the tiny scales overflow and
// underflow 1/scale, x/scale and the result.
inline std::vector<FakeQuantizeCase> fake_quantize_cases() {
  return {
      {1.0f, 0.0f, {-128, 127}},   {0.1f, 0.0f, {-127, 127}},     {0.0437f, 101.0f, {0, 255}},
      {0.5f, 255.0f, {0, 255}},    {0.7f, -3.0f, {-8, 7}},        {0.33f, 7.0f, {0, 15}},
      {2.0f, 1.0f, {0, 3}},        {0.25f, -128.0f, {-128, 127}}, {3e38f, 5.0f, {0, 255}},
      {0x1p-100f, 3.0f, {0, 255}}, {0x1p-127f, 1.0f, {-8, 7}},
  };
}

// Values around the case's codes: ties, both ends of the range and their neighbours, special values, then random ones,
// in random order so that special values meet every lane. The same seed gives the same values.
inline std::vector<float> fake_quantize_values(const FakeQuantizeCase& c, int64_t n, uint64_t seed) {
  Random random(seed);
  const float inf = std::numeric_limits<float>::infinity();
  const std::vector<float> special = {0.0f,
                                      -0.0f,
                                      inf,
                                      -inf,
                                      std::numeric_limits<float>::quiet_NaN(),
                                      numerics::bits_to_float(0xffc12345u),  // a quiet NaN with sign and payload
                                      numerics::bits_to_float(0x7f812345u),  // a signalling one
                                      std::numeric_limits<float>::denorm_min(),
                                      -1e-40f,
                                      numerics::kMaxFloat,
                                      -numerics::kMaxFloat};
  const int64_t lowest = static_cast<int64_t>(c.range.quant_min - c.zero_point) - 3;
  const int64_t highest = static_cast<int64_t>(c.range.quant_max - c.zero_point) + 3;
  std::vector<float> values(n);
  for (float& value : values) {
    const float code = static_cast<float>(random.integer(lowest, highest));
    switch (random.integer(0, 5)) {
      case 0:
        value = special[random.integer(0, static_cast<int64_t>(special.size()) - 1)];
        break;
      case 1:
        value = (code + 0.5f) * c.scale;
        break;
      case 2:
        value = std::nextafter((code + 0.5f) * c.scale, random.integer(0, 1) == 0 ? -inf : inf);
        break;
      case 3:
        value = random.any_float();
        break;
      default:
        value = random.uniform(static_cast<float>(lowest), static_cast<float>(highest)) * c.scale;
    }
  }
  return values;
}

}  // namespace torchquant::test
