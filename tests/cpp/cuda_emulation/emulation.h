// Runs CUDA kernels on the CPU, for tests: every thread of a block is a fiber, blocks run one after the other. The
// folder stands in for the toolkit's headers of the same names, so the files of csrc/kernels/cuda/ compile as C++ and
// their launchers take host pointers.
//
// It finds wrong index arithmetic, missing barriers (a fiber runs on until it has to wait), copies that are read before
// they are waited for, shared memory that is read before it is written (it starts as kPoison), and, under
// AddressSanitizer, accesses out of bounds. It says nothing about speed, memory ordering, alignment of vector accesses
// or what nvcc makes of the code.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>

struct dim3 {
  unsigned x = 1, y = 1, z = 1;
  constexpr dim3(unsigned x_ = 1, unsigned y_ = 1, unsigned z_ = 1) : x(x_), y(y_), z(z_) {}
};
struct uint3 {
  unsigned x, y, z;
};

// Of the fiber that runs. An opaque call stands between two fibers, so the compiler loads them anew.
extern uint3 threadIdx;
extern uint3 blockIdx;
extern dim3 blockDim;
extern dim3 gridDim;

namespace emulation {

constexpr int kWarp = 32;
constexpr unsigned char kPoison = 0xcd;

// Calls `kernel` once per thread of the grid. Throws std::logic_error if threads of a block wait for different things.
void run(dim3 grid, dim3 block, size_t dynamic_shared_bytes, const std::function<void()>& kernel);

void* dynamic_shared();

void block_barrier();
bool block_barrier_or(bool value);

// The lanes of the calling warp named in `mask` meet here; then `combine` runs once, on what they brought: pointers by
// lane, null where a lane is not in the mask. Returns after it ran. Every lane must name the same mask.
void warp_collective(uint32_t mask, void* mine, const std::function<void(void* const* by_lane)>& combine);

// cp.async: the copy happens when the fiber waits for its group, as late as the hardware may do it.
void copy_later(void* to, const void* from, size_t bytes, size_t valid_bytes);  // zeros after valid_bytes
void commit_copies();
void wait_copies(int groups_left);

inline int lane() {
  return static_cast<int>((threadIdx.x + blockDim.x * (threadIdx.y + blockDim.y * threadIdx.z)) % kWarp);
}

template <typename T>
T exchange(uint32_t mask, T value, int source) {
  struct Slot {
    T value;
    int source;
    T result;
  } slot{value, source, value};
  warp_collective(mask, &slot, [](void* const* by_lane) {
    for (int i = 0; i < kWarp; ++i) {
      auto* me = static_cast<Slot*>(by_lane[i]);
      if (me == nullptr || me->source < 0 || me->source >= kWarp) continue;
      const auto* from = static_cast<const Slot*>(by_lane[me->source]);
      if (from != nullptr) me->result = from->value;
    }
  });
  return slot.result;
}

}  // namespace emulation
