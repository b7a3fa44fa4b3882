// The instructions that CUDA C++ has no function for (asynchronous copies, matrix loads, tensor-core products), how a
// kernel is started, and dynamic shared memory. Included by the kernels of this folder. Each has a second body for
// hosts, with which tests/cpp/cuda_emulation/ runs the kernels on the CPU.
//
// Fragments follow "Matrix Fragments for mma.m16n8k*" of the PTX ISA: lane = 4 * group + member, group in [0, 8),
// member in [0, 4).
#pragma once

#include <cuda_runtime.h>

#include <cstdint>
#include <utility>

#if !defined(__CUDACC__)
#include "mma_emulation.h"
#endif

namespace torchquant::kernels::cuda {

#if defined(__CUDACC__)
// Allows `kernel` all the shared memory that the current GPU gives a block, less what it holds statically. Always the
// same value, because the setting is the function's: threads that start it with different sizes must not race.
template <typename Kernel>
cudaError_t allow_most_shared_memory(Kernel* kernel) {
  int device = 0;
  int most = 0;
  cudaFuncAttributes attributes{};
  cudaError_t error = cudaGetDevice(&device);
  if (error == cudaSuccess) error = cudaDeviceGetAttribute(&most, cudaDevAttrMaxSharedMemoryPerBlockOptin, device);
  if (error == cudaSuccess) error = cudaFuncGetAttributes(&attributes, kernel);
  if (error != cudaSuccess) return error;
  return cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                              most - static_cast<int>(attributes.sharedSizeBytes));
}
#endif

// Enqueues kernel(args...) on `stream`; the launch's error.
template <typename... Parameters, typename... Arguments>
cudaError_t start_kernel(void (*kernel)(Parameters...), dim3 grid, dim3 block, size_t shared_bytes, cudaStream_t stream,
                         Arguments&&... args) {
#if defined(__CUDACC__)
  // A block gets 48 KB, static and dynamic together, unasked; no kernel that has both holds more than 16 KB statically.
  constexpr size_t kAlwaysAllowed = 32 * 1024;
  if (shared_bytes > kAlwaysAllowed) {
    if (const cudaError_t error = allow_most_shared_memory(kernel); error != cudaSuccess) return error;
  }
  kernel<<<grid, block, shared_bytes, stream>>>(std::forward<Arguments>(args)...);
#else
  static_cast<void>(stream);
  emulation::run(grid, block, shared_bytes, [&] { kernel(args...); });
#endif
  return cudaGetLastError();
}

// The block's dynamic shared memory, aligned to 16 bytes.
__device__ __forceinline__ unsigned char* dynamic_shared() {
#if defined(__CUDACC__)
  extern __shared__ __align__(16) unsigned char torchquant_dynamic_shared[];
  return torchquant_dynamic_shared;
#else
  return static_cast<unsigned char*>(emulation::dynamic_shared());
#endif
}

#if defined(__CUDACC__)
__device__ __forceinline__ uint32_t shared_address(const void* p) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(p));
}
#endif

// Copies 16 bytes from global to shared memory some time before the wait_copies() that covers it; with `valid` false,
// 16 zeros, and `from` is not read. Both addresses are multiples of 16.
__device__ __forceinline__ void copy_16_async(void* to, const void* from, bool valid = true) {
#if defined(__CUDACC__)
  const int bytes = valid ? 16 : 0;
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(to)), "l"(from), "r"(bytes)
               : "memory");
#else
  emulation::copy_later(to, from, 16, valid ? 16 : 0);
#endif
}

// Closes the group of the copies since the last call.
__device__ __forceinline__ void commit_copies() {
#if defined(__CUDACC__)
  asm volatile("cp.async.commit_group;" ::: "memory");
#else
  emulation::commit_copies();
#endif
}

// Waits until at most GROUPS of this thread's groups are open. Other threads' copies are seen after a __syncthreads()
// behind it.
template <int GROUPS>
__device__ __forceinline__ void wait_copies() {
#if defined(__CUDACC__)
  asm volatile("cp.async.wait_group %0;" ::"n"(GROUPS) : "memory");
#else
  emulation::wait_copies(GROUPS);
#endif
}

// Four 8x8 matrices of 16-bit elements (16 bytes a row): lane l names row l % 8 of matrix l / 8, and gets in r[m] the
// two elements (row lane / 4, columns 2 * (lane % 4) and the next) of matrix m. For bytes: four columns, from 4 * (lane
// % 4).
__device__ __forceinline__ void load_matrices(uint32_t (&r)[4], const void* row) {
#if defined(__CUDACC__)
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(shared_address(row))
               : "memory");
#else
  emulation::load_matrices(r, row);
#endif
}

// sum[16 x 8] += a[16 x 32] * b[32 x 8] in int32. a: UNSIGNED_A ? uint8 : int8, row-major; b: int8, column-major.
// a[0]: row group, columns 4 * member..; a[1]: row group + 8; a[2], a[3]: the same 16 columns on. b[0]: rows 4 *
// member.. of column group; b[1]: 16 rows on. sum[0], sum[1]: row group, columns 2 * member and the next; sum[2],
// sum[3]: row group + 8.
template <bool UNSIGNED_A>
__device__ __forceinline__ void multiply_add_int8(int32_t (&sum)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
#if defined(__CUDACC__)
  if constexpr (UNSIGNED_A) {
    asm volatile(
        "mma.sync.aligned.m16n8k32.row.col.s32.u8.s8.s32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, "
        "%3};"
        : "+r"(sum[0]), "+r"(sum[1]), "+r"(sum[2]), "+r"(sum[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
  } else {
    asm volatile(
        "mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, "
        "%3};"
        : "+r"(sum[0]), "+r"(sum[1]), "+r"(sum[2]), "+r"(sum[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
  }
#else
  emulation::multiply_add_int8(sum, a, b, UNSIGNED_A);
#endif
}

// sum[16 x 8] += a[16 x 16] * b[16 x 8] in fp32; a row-major, b column-major, both fp16, or bf16 with BFLOAT16.
// a[0]: row group, columns 2 * member..; a[1]: row group + 8; a[2], a[3]: the same 8 columns on. b[0]: rows 2 *
// member.. of column group; b[1]: 8 rows on. sum as above. Not the bits of a scalar sum: the order of the products' sum
// is the hardware's.
template <bool BFLOAT16>
__device__ __forceinline__ void multiply_add_half(float (&sum)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
#if defined(__CUDACC__)
  if constexpr (BFLOAT16) {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, "
        "%2, %3};"
        : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
  } else {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, "
        "%3};"
        : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
  }
#else
  emulation::multiply_add_half(sum, a, b, BFLOAT16);
#endif
}

// a * b + c on the two fp16, or bf16 with BFLOAT16, of each word, rounded once.
template <bool BFLOAT16>
__device__ __forceinline__ uint32_t multiply_add_pair(uint32_t a, uint32_t b, uint32_t c) {
#if defined(__CUDACC__)
  uint32_t d;
  if constexpr (BFLOAT16) {
    asm("fma.rn.bf16x2 %0, %1, %2, %3;" : "=r"(d) : "r"(a), "r"(b), "r"(c));
  } else {
    asm("fma.rn.f16x2 %0, %1, %2, %3;" : "=r"(d) : "r"(a), "r"(b), "r"(c));
  }
  return d;
#else
  return emulation::multiply_add_pair(a, b, c, BFLOAT16);
#endif
}

}  // namespace torchquant::kernels::cuda
