// The emulation of the device itself, and the fragment layouts that csrc/kernels/cuda/intrinsics.cuh promises: a kernel
// that multiplies one tile through shared memory, matrix loads and tensor-core products has to give the plain product.
#include <gtest/gtest.h>

#include <random>
#include <stdexcept>
#include <vector>

#include "kernels/cuda/intrinsics.cuh"

namespace torchquant::kernels::cuda {
namespace {

std::vector<uint8_t> random_bytes(size_t count) {
  std::mt19937 random(1);
  std::vector<uint8_t> bytes(count);
  for (uint8_t& byte : bytes) byte = static_cast<uint8_t>(random());
  return bytes;
}

// out[16 x 8] = a[16 x 32] * b[8 x 32]^T by one warp.
void tile_kernel(const uint8_t* a, const uint8_t* b, int32_t* out) {
  unsigned char* shared = dynamic_shared();
  const unsigned lane = threadIdx.x;
  for (unsigned piece = lane; piece < 48; piece += 32) {
    copy_16_async(shared + 16 * piece, piece < 32 ? a + 16 * piece : b + 16 * (piece - 32));
  }
  commit_copies();
  wait_copies<0>();
  __syncthreads();
  uint32_t fragment_a[4];
  load_matrices(fragment_a, shared + (lane % 16) * 32 + lane / 16 * 16);
  uint32_t both[4];
  load_matrices(both, shared + 512 + (lane % 8) * 32 + lane / 8 % 2 * 16);
  const uint32_t fragment_b[2] = {both[0], both[1]};
  int32_t sum[4] = {};
  multiply_add_int8<true>(sum, fragment_a, fragment_b);
  for (unsigned i = 0; i < 4; ++i) out[(lane / 4 + i / 2 * 8) * 8 + lane % 4 * 2 + i % 2] = sum[i];
}

TEST(CudaIntrinsics, ATileThroughSharedMemoryIsThePlainProduct) {
  const auto a = random_bytes(16 * 32);
  const auto b = random_bytes(8 * 32);
  std::vector<int32_t> out(16 * 8);
  ASSERT_EQ(start_kernel(tile_kernel, 1, 32, 768, nullptr, a.data(), b.data(), out.data()), cudaSuccess);
  for (size_t row = 0; row < 16; ++row) {
    for (size_t column = 0; column < 8; ++column) {
      int32_t expected = 0;
      for (size_t k = 0; k < 32; ++k) expected += a[row * 32 + k] * static_cast<int8_t>(b[column * 32 + k]);
      EXPECT_EQ(out[row * 8 + column], expected) << row << ", " << column;
    }
  }
}

TEST(CudaEmulation, ACopyIsNotThereBeforeItIsWaitedFor) {
  const auto from = random_bytes(16);
  std::vector<unsigned> seen(2);
  const auto kernel = +[](const uint8_t* source, unsigned* result) {
    unsigned char* shared = dynamic_shared();
    copy_16_async(shared, source);
    commit_copies();
    result[0] = shared[0];
    wait_copies<0>();
    result[1] = shared[0];
  };
  start_kernel(kernel, 1, 1, 16, nullptr, from.data(), seen.data());
  EXPECT_EQ(seen[0], emulation::kPoison);
  EXPECT_EQ(seen[1], from[0]);
}

TEST(CudaEmulation, BarriersOrderTheThreadsOfABlock) {
  std::vector<int> out(96);
  const auto kernel = +[](int* result) {
    __shared__ int values[96];
    values[threadIdx.x] = static_cast<int>(threadIdx.x);
    __syncthreads();
    result[threadIdx.x] = values[95 - threadIdx.x];
  };
  start_kernel(kernel, 1, 96, 0, nullptr, out.data());
  for (int i = 0; i < 96; ++i) EXPECT_EQ(out[static_cast<size_t>(i)], 95 - i);
}

TEST(CudaEmulation, ThreadsThatWaitForDifferentThingsAreAnError) {
  const auto kernel = +[] {
    if (threadIdx.x == 0) return;
    __syncwarp();
  };
  EXPECT_THROW(start_kernel(kernel, 1, 32, 0, nullptr), std::logic_error);
}

}  // namespace
}  // namespace torchquant::kernels::cuda
