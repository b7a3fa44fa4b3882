// Device code that quantizes a row by its own largest value (numerics/dynamic.h). Used by linear_dynamic.cu,
// kv_cache.cu and float8.cu.
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

// Writes code_of(value) of elements first, first + step, ... (four each); those from the row's length to `padded` are
// the code of 0. `codes` and `padded` are multiples of 4.
template <typename T, typename CodeOf>
__device__ void write_bytes_of_share(const RowReader<T>& row, int64_t padded, int first, int step,
                                     const CodeOf& code_of, unsigned char* codes) {
  for (int64_t k = int64_t{4} * first; k < padded; k += int64_t{4} * step) {
    float values[4];
    row.read(k, values);
    uint32_t word = 0;  // the first in the lowest byte
#pragma unroll
    for (int i = 0; i < 4; ++i) word |= static_cast<uint32_t>(code_of(values[i])) << (8 * i);
    *reinterpret_cast<uint32_t*>(codes + k) = word;
  }
}

// The same with int8 codes.
template <typename T>
__device__ void write_codes_of_share(const RowReader<T>& row, int64_t padded, int first, int step,
                                     numerics::QParams qparams, unsigned char* codes) {
  const auto code_of = [qparams](float x) { return static_cast<uint8_t>(numerics::dynamic_code(x, qparams)); };
  write_bytes_of_share(row, padded, first, step, code_of, codes);
}

}  // namespace torchquant::kernels::cuda
