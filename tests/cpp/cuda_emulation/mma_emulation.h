// Matrix loads and tensor-core products of csrc/kernels/cuda/intrinsics.cuh on the CPU, after the fragment tables of
// the PTX ISA; see emulation.h.
#pragma once

#include <array>
#include <cstdint>
#include <cstring>

#include "emulation.h"
#include "numerics/float16.h"

namespace emulation {

inline void load_matrices(uint32_t (&r)[4], const void* row) {
  struct Slot {
    const void* row;
    uint32_t r[4];
  } slot{row, {}};
  warp_collective(0xffffffffu, &slot, [](void* const* by_lane) {
    for (int m = 0; m < 4; ++m) {
      std::array<std::array<uint16_t, 8>, 8> matrix;
      for (size_t i = 0; i < 8; ++i)
        std::memcpy(matrix[i].data(), static_cast<Slot*>(by_lane[8 * m + static_cast<int>(i)])->row, 16);
      for (size_t lane = 0; lane < kWarp; ++lane) {
        const size_t i = lane / 4;
        const size_t j = lane % 4 * 2;
        const uint32_t low = matrix[i][j];
        const uint32_t high = matrix[i][j + 1];
        static_cast<Slot*>(by_lane[lane])->r[m] = low | high << 16;
      }
    }
  });
  std::memcpy(r, slot.r, sizeof(slot.r));
}

// PER: elements in a register; K of the product is 8 * PER.
template <int PER, typename Sum, typename ValueA, typename ValueB>
void multiply_add(Sum (&sum)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], const ValueA& value_a,
                  const ValueB& value_b) {
  struct Slot {
    uint32_t a[4];
    uint32_t b[2];
    Sum sum[4];
  } slot;
  std::memcpy(slot.a, a, sizeof(slot.a));
  std::memcpy(slot.b, b, sizeof(slot.b));
  std::memcpy(slot.sum, sum, sizeof(slot.sum));
  warp_collective(0xffffffffu, &slot, [&](void* const* by_lane) {
    constexpr int kDepth = 8 * PER;
    const auto at = [&](int lane) { return static_cast<Slot*>(by_lane[lane]); };
    for (int row = 0; row < 16; ++row) {
      for (int column = 0; column < 8; ++column) {
        Sum total{};
        for (int k = 0; k < kDepth; ++k) {
          const int half = k / (4 * PER);
          const int member = k % (4 * PER) / PER;
          const uint32_t from_a = at(row % 8 * 4 + member)->a[2 * half + row / 8];
          const uint32_t from_b = at(column * 4 + member)->b[half];
          total += value_a(from_a, k % PER) * value_b(from_b, k % PER);
        }
        at(row % 8 * 4 + column / 2)->sum[row / 8 * 2 + column % 2] += total;
      }
    }
  });
  std::memcpy(sum, slot.sum, sizeof(slot.sum));
}

inline void multiply_add_int8(int32_t (&sum)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], bool unsigned_a) {
  const auto as_signed = [](uint32_t r, int i) { return static_cast<int32_t>(static_cast<int8_t>(r >> 8 * i)); };
  const auto as_a = [&](uint32_t r, int i) {
    return unsigned_a ? static_cast<int32_t>(static_cast<uint8_t>(r >> 8 * i)) : as_signed(r, i);
  };
  multiply_add<4>(sum, a, b, as_a, as_signed);
}

// Element i of a word.
inline float half_of(uint32_t r, int i, bool bfloat16) {
  const auto bits = static_cast<uint16_t>(r >> 16 * i);
  return bfloat16 ? torchquant::numerics::to_float(torchquant::numerics::BFloat16{bits})
                  : torchquant::numerics::to_float(torchquant::numerics::Float16{bits});
}

inline void multiply_add_half(float (&sum)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], bool bfloat16) {
  const auto value = [bfloat16](uint32_t r, int i) { return half_of(r, i, bfloat16); };
  multiply_add<2>(sum, a, b, value, value);
}

// In double, which holds the product and, for values of like magnitude, the sum: the narrowing is then the only
// rounding.
inline uint32_t multiply_add_pair(uint32_t a, uint32_t b, uint32_t c, bool bfloat16) {
  uint32_t result = 0;
  for (int i = 0; i < 2; ++i) {
    const auto sum = static_cast<float>(static_cast<double>(half_of(a, i, bfloat16)) * half_of(b, i, bfloat16) +
                                        half_of(c, i, bfloat16));
    const uint32_t bits = bfloat16 ? torchquant::numerics::from_float<torchquant::numerics::BFloat16>(sum).bits
                                   : torchquant::numerics::from_float<torchquant::numerics::Float16>(sum).bits;
    result |= bits << 16 * i;
  }
  return result;
}

}  // namespace emulation
