// Fibers, barriers and shared memory of the emulation; see emulation.h.
#include "emulation.h"

#include <ucontext.h>

#include <cstring>
#include <deque>
#include <memory>
#include <stdexcept>
#include <vector>

uint3 threadIdx;
uint3 blockIdx;
dim3 blockDim;
dim3 gridDim;

namespace emulation {
namespace {

constexpr size_t kStackBytes = 256 * 1024;

struct Copy {
  void* to;
  const void* from;
  size_t bytes;
  size_t valid_bytes;
};

enum class State { kReady, kAtBarrier, kAtCollective, kDone };

struct Fiber {
  ucontext_t context;
  std::unique_ptr<char[]> stack{new char[kStackBytes]};
  uint3 thread;
  int index;
  State state;
  bool vote;      // at a barrier: what it brings, then what it takes
  uint32_t mask;  // at a collective
  void* brought;  // at a collective
  const std::function<void(void* const*)>* combine;
  std::vector<Copy> open_copies;
  std::deque<std::vector<Copy>> groups;
};

struct Block {
  std::vector<Fiber> fibers;
  ucontext_t scheduler;
  Fiber* running = nullptr;
  const std::function<void()>* kernel = nullptr;
  std::vector<unsigned char> dynamic_shared;
};
Block block;

void enter() {
  (*block.kernel)();
  block.running->state = State::kDone;
  // uc_link goes back to the scheduler.
}

void start(Fiber& fiber) {
  getcontext(&fiber.context);
  fiber.context.uc_stack.ss_sp = fiber.stack.get();
  fiber.context.uc_stack.ss_size = kStackBytes;
  fiber.context.uc_link = &block.scheduler;
  makecontext(&fiber.context, enter, 0);
  fiber.state = State::kReady;
  fiber.open_copies.clear();
  fiber.groups.clear();
}

void resume(Fiber& fiber) {
  block.running = &fiber;
  threadIdx = fiber.thread;
  swapcontext(&block.scheduler, &fiber.context);
}

void wait_as(State state) {
  Fiber& me = *block.running;
  me.state = state;
  swapcontext(&me.context, &block.scheduler);
}

// Threads that have ended count as arrived, as on the device.
bool release_barrier() {
  bool any = false;
  for (const Fiber& fiber : block.fibers) {
    if (fiber.state != State::kAtBarrier && fiber.state != State::kDone) return false;
    any = any || (fiber.state == State::kAtBarrier && fiber.vote);
  }
  for (Fiber& fiber : block.fibers) {
    if (fiber.state != State::kAtBarrier) continue;
    fiber.vote = any;
    fiber.state = State::kReady;
  }
  return true;
}

bool release_collective(Fiber& first) {
  void* by_lane[kWarp] = {};
  const int base = first.index / kWarp * kWarp;
  for (int lane = 0; lane < kWarp; ++lane) {
    if ((first.mask >> lane & 1u) == 0) continue;
    if (base + lane >= static_cast<int>(block.fibers.size()))
      throw std::logic_error("a warp operation names lanes that the block lacks");
    const Fiber& other = block.fibers[static_cast<size_t>(base + lane)];
    if (other.state != State::kAtCollective) return false;
    if (other.mask != first.mask) throw std::logic_error("lanes of a warp meet with different masks");
    by_lane[lane] = other.brought;
  }
  (*first.combine)(by_lane);
  for (int lane = 0; lane < kWarp; ++lane) {
    if (first.mask >> lane & 1u) block.fibers[static_cast<size_t>(base + lane)].state = State::kReady;
  }
  return true;
}

void run_block() {
  for (Fiber& fiber : block.fibers) start(fiber);
  for (;;) {
    bool moved = false;
    bool alive = false;
    for (Fiber& fiber : block.fibers) {
      if (fiber.state == State::kAtCollective) moved = release_collective(fiber) || moved;
      if (fiber.state == State::kReady) {
        resume(fiber);
        moved = true;
      }
      alive = alive || fiber.state != State::kDone;
    }
    if (!alive) return;
    if (!moved && !release_barrier()) throw std::logic_error("the threads of a block wait for different things");
  }
}

void perform(const std::vector<Copy>& copies) {
  for (const Copy& copy : copies) {
    std::memcpy(copy.to, copy.from, copy.valid_bytes);
    std::memset(static_cast<char*>(copy.to) + copy.valid_bytes, 0, copy.bytes - copy.valid_bytes);
  }
}

}  // namespace

void run(dim3 grid, dim3 threads, size_t dynamic_shared_bytes, const std::function<void()>& kernel) {
  gridDim = grid;
  blockDim = threads;
  block.kernel = &kernel;
  block.fibers = std::vector<Fiber>(static_cast<size_t>(threads.x) * threads.y * threads.z);
  for (size_t i = 0; i < block.fibers.size(); ++i) {
    const auto index = static_cast<unsigned>(i);
    block.fibers[i].index = static_cast<int>(i);
    block.fibers[i].thread = {index % threads.x, index / threads.x % threads.y, index / threads.x / threads.y};
  }
  for (unsigned z = 0; z < grid.z; ++z) {
    for (unsigned y = 0; y < grid.y; ++y) {
      for (unsigned x = 0; x < grid.x; ++x) {
        blockIdx = {x, y, z};
        block.dynamic_shared.assign(dynamic_shared_bytes + 1024, kPoison);
        run_block();
      }
    }
  }
}

void* dynamic_shared() {
  const auto address = reinterpret_cast<uintptr_t>(block.dynamic_shared.data());
  return reinterpret_cast<void*>((address + 1023) / 1024 * 1024);
}

void block_barrier() { block_barrier_or(false); }

bool block_barrier_or(bool value) {
  block.running->vote = value;
  wait_as(State::kAtBarrier);
  return block.running->vote;
}

void warp_collective(uint32_t mask, void* mine, const std::function<void(void* const*)>& combine) {
  Fiber& me = *block.running;
  if ((mask >> lane() & 1u) == 0) throw std::logic_error("a lane calls a warp operation whose mask leaves it out");
  me.mask = mask;
  me.brought = mine;
  me.combine = &combine;
  wait_as(State::kAtCollective);
}

void copy_later(void* to, const void* from, size_t bytes, size_t valid_bytes) {
  block.running->open_copies.push_back({to, from, bytes, valid_bytes});
}

void commit_copies() {
  block.running->groups.push_back(std::move(block.running->open_copies));
  block.running->open_copies.clear();
}

void wait_copies(int groups_left) {
  auto& groups = block.running->groups;
  while (static_cast<int>(groups.size()) > groups_left) {
    perform(groups.front());
    groups.pop_front();
  }
}

}  // namespace emulation
