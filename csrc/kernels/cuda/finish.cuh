// The second half of every fused integer kernel on the device: from accumulators to stored codes or floats, a few
// adjacent channels at a time. Included by the kernels of this folder; the arithmetic is numerics/requantize.h.
#pragma once

#include <cstdint>

#include "kernels/cuda/device.cuh"
#include "kernels/quantized_types.h"
#include "numerics/requantize.h"

namespace torchquant::kernels::cuda {

// Whether an access to all COUNT elements of a run at `p` may be one: it is whole and its address a multiple of its
// size.
template <int COUNT, typename T>
__device__ __forceinline__ bool is_whole_access(const T* p, int valid) {
  return valid >= COUNT && reinterpret_cast<uintptr_t>(p) % (sizeof(T) * COUNT) == 0;
}

// The first `valid` of COUNT adjacent codes from element `index` on, as integers; 0 behind them.
template <int COUNT>
__device__ __forceinline__ void load_codes(int32_t (&q)[COUNT], const void* codes, ElementType type, int64_t index,
                                           int valid = COUNT) {
  const uint8_t* from = static_cast<const uint8_t*>(codes) + index;
  Pack<uint8_t, COUNT> bytes;
  if (is_whole_access<COUNT>(from, valid)) {
    bytes = *reinterpret_cast<const Pack<uint8_t, COUNT>*>(from);
  } else {
#pragma unroll
    for (int i = 0; i < COUNT; ++i) bytes.value[i] = i < valid ? from[i] : uint8_t{0};
  }
#pragma unroll
  for (int i = 0; i < COUNT; ++i) {
    q[i] = type == ElementType::kUInt8 ? bytes.value[i] : static_cast<int8_t>(bytes.value[i]);
  }
}

// Writes the first `valid` of COUNT adjacent elements from element `index` on.
template <int COUNT, typename T>
__device__ __forceinline__ void store_run(const Pack<T, COUNT>& values, void* out, int64_t index, int valid) {
  T* to = static_cast<T*>(out) + index;
  if (is_whole_access<COUNT>(to, valid)) {
    *reinterpret_cast<Pack<T, COUNT>*>(to) = values;
    return;
  }
#pragma unroll
  for (int i = 0; i < COUNT; ++i) {
    if (i < valid) to[i] = values.value[i];
  }
}

// Activates v (in units of the output scale), rounds it to codes unless the output is float, and stores the first
// `valid` values from element `index` on.
template <int COUNT>
__device__ __forceinline__ void store_values(const float (&v)[COUNT], const OutputSpec& spec, void* out, int64_t index,
                                             int valid = COUNT) {
  Pack<float, COUNT> values;
#pragma unroll
  for (int i = 0; i < COUNT; ++i) values.value[i] = numerics::activate(v[i], spec.activation);
  if (spec.type == ElementType::kFloat32) return store_run(values, out, index, valid);
  Pack<uint8_t, COUNT> codes;  // int8 codes as their bytes
#pragma unroll
  for (int i = 0; i < COUNT; ++i) {
    codes.value[i] =
        static_cast<uint8_t>(static_cast<int32_t>(numerics::output_code(values.value[i], spec.zero_point, spec.range)));
  }
  store_run(codes, out, index, valid);
}

// v += r * (q_res - z_res), where there is a residual; its codes start at element `index`.
template <int COUNT>
__device__ __forceinline__ void add_residual(float (&v)[COUNT], const Residual& residual, int64_t index,
                                             int valid = COUNT) {
  if (residual.data == nullptr) return;
  int32_t q[COUNT];
  load_codes(q, residual.data, residual.type, index, valid);
#pragma unroll
  for (int i = 0; i < COUNT; ++i) {
    v[i] = numerics::add_residual(v[i], q[i] - residual.zero_point, residual.multiplier);
  }
}

// What an epilogue holds for COUNT adjacent channels; values behind the last channel are 0.
template <int COUNT>
struct ChannelScales {
  float multiplier[COUNT];
  float bias[COUNT];

  __device__ __forceinline__ ChannelScales(const Epilogue& epilogue, int64_t channel, int valid = COUNT) {
#pragma unroll
    for (int i = 0; i < COUNT; ++i) {
      multiplier[i] = i < valid ? epilogue.multiplier[channel + i] : 0.0f;
      bias[i] = i < valid ? epilogue.bias[channel + i] : 0.0f;
    }
  }
};

// The whole epilogue of `valid` adjacent accumulators: element `index` of the output and, laid out like it, of the
// residual.
template <int COUNT>
__device__ __forceinline__ void finish_run(const int32_t (&acc)[COUNT], const ChannelScales<COUNT>& scales,
                                           const Epilogue& epilogue, void* out, int64_t index, int valid = COUNT) {
  float v[COUNT];
#pragma unroll
  for (int i = 0; i < COUNT; ++i) {
    v[i] = numerics::scale_accumulator(acc[i], scales.multiplier[i], scales.bias[i]);
  }
  add_residual(v, epilogue.residual, index, valid);
  store_values(v, epilogue.output, out, index, valid);
}

}  // namespace torchquant::kernels::cuda
