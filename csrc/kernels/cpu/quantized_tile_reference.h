// The steps that the reference kernels of quantized_*_reference.cpp share: centre codes, multiply a tile, finish a row.
//
// Codes are widened to int16 with their zero point already subtracted. That makes padding a plain 0 and lets the
// compiler turn the inner product into the multiply-and-add-pairs instruction that every x86-64 has.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "kernels/quantized_kernels.h"

namespace torchquant::kernels::reference {

// Rows that are multiplied together, so that a row of weights is read once for all of them.
inline constexpr int64_t kTileRows = 8;

// Calls fn with a null pointer of the C++ type that stores `type`; for codes only.
template <typename Fn>
void with_code_type(ElementType type, Fn&& fn) {
  if (type == ElementType::kUInt8) {
    fn(static_cast<const uint8_t*>(nullptr));
  } else {
    fn(static_cast<const int8_t*>(nullptr));
  }
}

template <typename T>
void centre(const T* codes, int64_t n, int32_t zero_point, int16_t* centred) {
  for (int64_t i = 0; i < n; ++i) centred[i] = static_cast<int16_t>(codes[i] - zero_point);
}

template <int kRows, int kChannels>
void multiply_block(const int16_t* a, const int8_t* w, int64_t depth, int32_t* acc, int64_t acc_stride) {
  int32_t sums[kRows][kChannels] = {};
  for (int64_t k = 0; k < depth; ++k) {
    for (int r = 0; r < kRows; ++r) {
      for (int c = 0; c < kChannels; ++c) {
        sums[r][c] += static_cast<int32_t>(a[r * depth + k]) * static_cast<int32_t>(w[c * depth + k]);
      }
    }
  }
  for (int r = 0; r < kRows; ++r) {
    for (int c = 0; c < kChannels; ++c) acc[r * acc_stride + c] = sums[r][c];
  }
}

template <int kChannels>
void multiply_columns(const int16_t* a, int64_t rows, const int8_t* w, int64_t depth, int32_t* acc,
                      int64_t acc_stride) {
  int64_t r = 0;
  for (; r + 4 <= rows; r += 4) {
    multiply_block<4, kChannels>(a + r * depth, w, depth, acc + r * acc_stride, acc_stride);
  }
  for (; r < rows; ++r) multiply_block<1, kChannels>(a + r * depth, w, depth, acc + r * acc_stride, acc_stride);
}

// acc[r, c] = sum_k a[r, k] * w[c, k], exact: the op has refused a depth that could overflow int32.
inline void multiply_tile(const int16_t* a, int64_t rows, const int8_t* w, int64_t channels, int64_t depth,
                          int32_t* acc, int64_t acc_stride) {
  int64_t c = 0;
  for (; c + 4 <= channels; c += 4) multiply_columns<4>(a, rows, w + c * depth, depth, acc + c, acc_stride);
  for (; c < channels; ++c) multiply_columns<1>(a, rows, w + c * depth, depth, acc + c, acc_stride);
}

template <typename T>
void store_codes(const float* v, int64_t n, const OutputSpec& spec, T* out) {
  for (int64_t i = 0; i < n; ++i) {
    out[i] = static_cast<T>(static_cast<int32_t>(numerics::output_code(v[i], spec.zero_point, spec.range)));
  }
}

// Activates v in place, then writes n values at element `offset` of `out`.
inline void store_values(float* v, int64_t n, const OutputSpec& spec, void* out, int64_t offset) {
  for (int64_t i = 0; i < n; ++i) v[i] = numerics::activate(v[i], spec.activation);
  switch (spec.type) {
    case ElementType::kUInt8:
      return store_codes(v, n, spec, static_cast<uint8_t*>(out) + offset);
    case ElementType::kInt8:
      return store_codes(v, n, spec, static_cast<int8_t*>(out) + offset);
    case ElementType::kFloat32:
      std::copy_n(v, n, static_cast<float*>(out) + offset);
  }
}

inline void add_residual_row(float* v, int64_t n, const Residual& residual, int64_t offset) {
  with_code_type(residual.type, [&](auto* code) {
    const auto* codes = static_cast<decltype(code)>(residual.data) + offset;
    for (int64_t i = 0; i < n; ++i) {
      v[i] = numerics::add_residual(v[i], codes[i] - residual.zero_point, residual.multiplier);
    }
  });
}

// Accumulators of channels [channel, channel + n) of one output row, whose first of them is element `offset` of the
// output and `residual_offset` of the residual.
inline void finish_row(const int32_t* acc, int64_t channel, int64_t n, const Epilogue& epilogue, void* out,
                       int64_t offset, int64_t residual_offset) {
  constexpr int64_t kChunk = 256;
  float v[kChunk];
  for (int64_t begin = 0; begin < n; begin += kChunk) {
    const int64_t count = std::min(kChunk, n - begin);
    const float* multiplier = epilogue.multiplier + channel + begin;
    const float* bias = epilogue.bias + channel + begin;
    for (int64_t i = 0; i < count; ++i) v[i] = numerics::scale_accumulator(acc[begin + i], multiplier[i], bias[i]);
    if (epilogue.residual.data != nullptr) add_residual_row(v, count, epilogue.residual, residual_offset + begin);
    store_values(v, count, epilogue.output, out, offset + begin);
  }
}

}  // namespace torchquant::kernels::reference
