// Floats as the bytes of a tensor of any float type, and back. Used by the tests of kernels that read and write such
// tensors.
#pragma once

#include <cstdint>
#include <cstring>
#include <vector>

#include "kernels/fake_quantize.h"
#include "numerics/float16.h"

namespace torchquant::test {

template <typename F>
void with_type(kernels::FloatType type, const F& f) {
  switch (type) {
    case kernels::FloatType::kFloat32:
      return f(float{});
    case kernels::FloatType::kBFloat16:
      return f(numerics::BFloat16{});
    case kernels::FloatType::kFloat16:
      return f(numerics::Float16{});
  }
}

inline std::vector<unsigned char> narrowed(const std::vector<float>& values, kernels::FloatType type) {
  std::vector<unsigned char> bytes;
  with_type(type, [&](auto tag) {
    bytes.resize(values.size() * sizeof(tag));
    for (size_t i = 0; i < values.size(); ++i) {
      const auto value = numerics::from_float<decltype(tag)>(values[i]);
      std::memcpy(bytes.data() + i * sizeof(tag), &value, sizeof(tag));
    }
  });
  return bytes;
}

inline std::vector<float> widened(const std::vector<unsigned char>& bytes, kernels::FloatType type) {
  std::vector<float> values;
  with_type(type, [&](auto value) {
    values.resize(bytes.size() / sizeof(value));
    for (size_t i = 0; i < values.size(); ++i) {
      std::memcpy(&value, bytes.data() + i * sizeof(value), sizeof(value));
      values[i] = numerics::to_float(value);
    }
  });
  return values;
}

}  // namespace torchquant::test
