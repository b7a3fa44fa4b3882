// Loads, stores and reductions that the CUDA kernels of this folder share.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cstdint>

#include "kernels/cuda/intrinsics.cuh"
#include "kernels/fake_quantize.h"

namespace torchquant::kernels::cuda {

constexpr int kThreads = 256;
constexpr int kWarp = 32;
constexpr int64_t kMaxBlocks = 2048;

// VEC elements moved as one access.
template <typename T, int VEC>
struct alignas(sizeof(T) * VEC) Pack {
  T value[VEC];
};

__device__ __forceinline__ float to_float(float v) { return v; }
__device__ __forceinline__ float to_float(__nv_bfloat16 v) { return __bfloat162float(v); }
__device__ __forceinline__ float to_float(__half v) { return __half2float(v); }

template <typename T>
__device__ __forceinline__ T from_float(float v);
template <>
__device__ __forceinline__ float from_float<float>(float v) {
  return v;
}
template <>
__device__ __forceinline__ __nv_bfloat16 from_float<__nv_bfloat16>(float v) {
  return __float2bfloat16_rn(v);
}
template <>
__device__ __forceinline__ __half from_float<__half>(float v) {
  return __float2half_rn(v);
}

// Calls f with a null pointer of the element type that `type` names.
template <typename F>
cudaError_t dispatch_type(FloatType type, const F& f) {
  switch (type) {
    case FloatType::kFloat32:
      return f(static_cast<float*>(nullptr));
    case FloatType::kBFloat16:
      return f(static_cast<__nv_bfloat16*>(nullptr));
    case FloatType::kFloat16:
      return f(static_cast<__half*>(nullptr));
  }
  return cudaErrorInvalidValue;
}

inline bool is_aligned(const void* p, size_t bytes) { return reinterpret_cast<uintptr_t>(p) % bytes == 0; }

inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Combines one value per thread of a warp or a block; the result is valid in thread 0. Order: lanes by halves, then
// warps. A block is a multiple of kWarp threads, at most kThreads; a block that reduces twice has a barrier between.
template <typename V>
__device__ V reduce_warp(V v) {
#pragma unroll
  for (int offset = kWarp / 2; offset > 0; offset /= 2) v.merge(v.shuffle_down(offset));
  return v;
}

template <typename V>
__device__ V reduce_block(V v) {
  __shared__ V warps[kThreads / kWarp];
  const unsigned lane = threadIdx.x % kWarp;
  const unsigned warp = threadIdx.x / kWarp;
  v = reduce_warp(v);
  if (lane == 0) warps[warp] = v;
  __syncthreads();
  if (threadIdx.x == 0) {
    for (unsigned w = 1; w < blockDim.x / kWarp; ++w) v.merge(warps[w]);
  }
  return v;
}

}  // namespace torchquant::kernels::cuda
