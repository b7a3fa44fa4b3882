// Host/device markers shared by every numerics header; the first stage of all: it includes only the standard library.
#pragma once

#if defined(__CUDACC__)
#define TQ_HOST_DEVICE __host__ __device__ __forceinline__
#else
// Forced inlining keeps one definition per translation unit: an out-of-line copy compiled with AVX-512 flags could
// otherwise be the one that the linker keeps for every instruction set.
#define TQ_HOST_DEVICE inline __attribute__((always_inline))
#endif
