// The part of CUDA C++ that the kernels of csrc/kernels/cuda/ use; see emulation.h.
#pragma once

#include <cmath>
#include <cstring>

#include "cuda_runtime_api.h"

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)
// One block runs at a time and all its fibers share what is static.
#define __shared__ static
#define __restrict__

struct float2 {
  float x, y;
};
struct alignas(16) float4 {
  float x, y, z, w;
};
struct alignas(8) uint2 {
  unsigned x, y;
};
struct alignas(16) uint4 {
  unsigned x, y, z, w;
};
struct alignas(8) int2 {
  int x, y;
};
struct alignas(16) int4 {
  int x, y, z, w;
};
inline uint2 make_uint2(unsigned x, unsigned y) { return {x, y}; }
inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }
inline int4 make_int4(int x, int y, int z, int w) { return {x, y, z, w}; }
inline float2 make_float2(float x, float y) { return {x, y}; }
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }

inline void __syncthreads() { emulation::block_barrier(); }
inline int __syncthreads_or(int value) { return emulation::block_barrier_or(value != 0); }
inline void __syncwarp(unsigned mask = 0xffffffffu) {
  emulation::warp_collective(mask, nullptr, [](void* const*) {});
}
inline void __threadfence() {}

template <typename T>
T __shfl_sync(unsigned mask, T value, int source, int width = 32) {
  return emulation::exchange(mask, value, emulation::lane() / width * width + source % width);
}
template <typename T>
T __shfl_down_sync(unsigned mask, T value, unsigned offset, int width = 32) {
  const int lane = emulation::lane();
  return emulation::exchange(mask, value,
                             lane % width + static_cast<int>(offset) < width ? lane + static_cast<int>(offset) : -1);
}
template <typename T>
T __shfl_up_sync(unsigned mask, T value, unsigned offset, int width = 32) {
  const int lane = emulation::lane();
  return emulation::exchange(mask, value,
                             lane % width >= static_cast<int>(offset) ? lane - static_cast<int>(offset) : -1);
}
template <typename T>
T __shfl_xor_sync(unsigned mask, T value, int lanes, int width = 32) {
  const int lane = emulation::lane();
  const int source = lane ^ lanes;
  return emulation::exchange(mask, value, source / width == lane / width ? source : -1);
}
inline unsigned __ballot_sync(unsigned mask, int predicate) {
  struct Slot {
    bool predicate;
    unsigned result;
  } slot{predicate != 0, 0};
  emulation::warp_collective(mask, &slot, [](void* const* by_lane) {
    unsigned votes = 0;
    for (int i = 0; i < 32; ++i) {
      if (by_lane[i] != nullptr && static_cast<Slot*>(by_lane[i])->predicate) votes |= 1u << i;
    }
    for (int i = 0; i < 32; ++i) {
      if (by_lane[i] != nullptr) static_cast<Slot*>(by_lane[i])->result = votes;
    }
  });
  return slot.result;
}

// Fibers give way only where they wait, so a plain update is atomic.
template <typename T, typename U>
T atomicAdd(T* p, U value) {
  const T old = *p;
  *p = static_cast<T>(old + static_cast<T>(value));
  return old;
}
template <typename T>
T atomicMax(T* p, T value) {
  const T old = *p;
  if (value > old) *p = value;
  return old;
}
template <typename T>
T atomicMin(T* p, T value) {
  const T old = *p;
  if (value < old) *p = value;
  return old;
}
template <typename T>
T atomicCAS(T* p, T compare, T value) {
  const T old = *p;
  if (old == compare) *p = value;
  return old;
}

template <typename T>
T __ldg(const T* p) {
  return *p;
}
inline int __dp4a(int a, int b, int sum) {
  for (int i = 0; i < 4; ++i)
    sum +=
        static_cast<int8_t>(static_cast<unsigned>(a) >> 8 * i) * static_cast<int8_t>(static_cast<unsigned>(b) >> 8 * i);
  return sum;
}
// Byte i of the result is the one of (b, a) that nibble i of `selector` names.
inline unsigned __byte_perm(unsigned a, unsigned b, unsigned selector) {
  const uint64_t both = static_cast<uint64_t>(b) << 32 | a;
  unsigned result = 0;
  for (unsigned i = 0; i < 4; ++i) {
    const unsigned byte = selector >> 4 * i & 7u;
    result |= static_cast<unsigned>(both >> 8 * byte & 0xff) << 8 * i;
  }
  return result;
}
inline float __fmaf_rn(float a, float b, float c) { return std::fma(a, b, c); }
inline float __fmul_rn(float a, float b) { return a * b; }
inline float __fadd_rn(float a, float b) { return a + b; }
inline float __int_as_float(int bits) {
  float value;
  std::memcpy(&value, &bits, sizeof(value));
  return value;
}
inline int __float_as_int(float value) {
  int bits;
  std::memcpy(&bits, &value, sizeof(bits));
  return bits;
}
using std::isfinite;
