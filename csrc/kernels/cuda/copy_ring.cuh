// A ring of tiles in shared memory that asynchronous copies fill ahead of the products. Used by the tensor-core kernels
// of convolutions and linear layers.
#pragma once

#include "kernels/cuda/intrinsics.cuh"

namespace torchquant::kernels::cuda {

// multiply(step, tile) for steps 0 ... steps - 1, whose tile copy(step, tile) began to fill STAGES - 1 steps before.
// `ring` holds STAGES tiles of TILE_BYTES. For all threads of a block; whoever overwrites the ring afterwards puts a
// __syncthreads() before.
template <int STAGES, int TILE_BYTES, typename Copy, typename Multiply>
__device__ __forceinline__ void run_through_ring(unsigned char* ring, int steps, const Copy& copy,
                                                 const Multiply& multiply) {
  const auto begin = [&](int step) {
    if (step < steps) copy(step, ring + step % STAGES * TILE_BYTES);
    commit_copies();  // an empty group too, so that the groups count steps
  };
#pragma unroll 1
  for (int step = 0; step < STAGES - 1; ++step) begin(step);
#pragma unroll 1
  for (int step = 0; step < steps; ++step) {
    wait_copies<STAGES - 2>();
    __syncthreads();  // this step's tile is there, and nobody reads the one before
    begin(step + STAGES - 1);
    multiply(step, ring + step % STAGES * TILE_BYTES);
  }
  wait_copies<0>();
}

}  // namespace torchquant::kernels::cuda
