// Device code that quantizes a row by its own largest value (numerics/dynamic.h). Used by linear_dynamic.cu and
// kv_cache.cu.
#pragma once

#include "kernels/cuda/device.cuh"
#include "numerics/dynamic.h"

namespace torchquant::kernels::cuda {

// Four neighbours of a row at a time; zeros beyond its end.
template <typename T>
class RowReader {
 public:
  __device__ RowReader(const T* row, int64_t length)
      : row_(row), length_(length), aligned_(reinterpret_cast<uintptr_t>(row) % sizeof(Pack<T, 4>) == 0) {}

  __device__ void read(int64_t first, float (&values)[4]) const {
    if (aligned_ && first + 4 <= length_) {
      const auto pack = *reinterpret_cast<const Pack<T, 4>*>(row_ + first);
#pragma unroll
      for (int i = 0; i < 4; ++i) values[i] = to_float(pack.value[i]);
    } else {
#pragma unroll
      for (int i = 0; i < 4; ++i) values[i] = first + i < length_ ? to_float(row_[first + i]) : 0.0f;
    }
  }

 private:
  const T* row_;
  int64_t length_;
  bool aligned_;
};

__device__ __forceinline__ int32_t larger(int32_t a, int32_t b) { return a > b ? a : b; }

// Largest finite magnitude among elements first, first + step, ... (four each) of a row.
template <typename T>
__device__ int32_t largest_of_share(const RowReader<T>& row, int64_t length, int first, int step) {
  int32_t largest = 0;
  for (int64_t k = int64_t{4} * first; k < length; k += int64_t{4} * step) {
    float values[4];
    row.read(k, values);
#pragma unroll
    for (float value : values) largest = larger(largest, numerics::finite_magnitude_bits(value));
  }
  return largest;
}

// The largest of a warp's values, in every lane.
__device__ __forceinline__ int32_t largest_of_warp(int32_t value) {
#pragma unroll
  for (int lanes = kWarp / 2; lanes > 0; lanes /= 2) value = larger(value, __shfl_xor_sync(0xffffffffu, value, lanes));
  return value;
}

// Codes of four values, the first in the lowest byte.
__device__ __forceinline__ uint32_t four_codes(const float (&values)[4], numerics::QParams qparams) {
  uint32_t codes = 0;
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    codes |= static_cast<uint32_t>(static_cast<uint8_t>(numerics::dynamic_code(values[i], qparams))) << (8 * i);
  }
  return codes;
}

// Writes the codes of elements first, first + step, ... (four each), as zeros from `length` to `padded`.
template <typename T>
__device__ void write_codes_of_share(const RowReader<T>& row, int64_t padded, int first, int step,
                                     numerics::QParams qparams, unsigned char* codes) {
  for (int64_t k = int64_t{4} * first; k < padded; k += int64_t{4} * step) {
    float values[4];
    row.read(k, values);
    *reinterpret_cast<uint32_t*>(codes + k) = four_codes(values, qparams);
  }
}

}  // namespace torchquant::kernels::cuda
