// Hands out the tasks of one phase to the threads of a run, and lets them wait for its end. Used by plan.cpp.
#pragma once

#include <atomic>
#include <cstdint>

#include "ops/task_shares.h"

namespace torchquant::island {

class PhaseCounter {
 public:
  explicit PhaseCounter(int threads) : shares_(threads) {}

  void reset(int64_t tasks) {
    shares_.reset(tasks);
    done_.store(0, std::memory_order_relaxed);
  }

  int64_t take(int64_t thread) { return shares_.take(thread); }

  void finish_one(int64_t tasks) {
    if (done_.fetch_add(1, std::memory_order_acq_rel) + 1 == tasks) done_.notify_all();
  }

  // Waits for tasks that others have taken: spins for about the time that a task takes, then sleeps, because the core
  // of the other thread may belong to another process for a while.
  void wait_for(int64_t tasks) const {
    for (int spin = 0; spin < kSpins; ++spin) {
      if (done_.load(std::memory_order_acquire) >= tasks) return;
      relax();
    }
    for (int32_t done; (done = done_.load(std::memory_order_acquire)) < tasks;)
      done_.wait(done, std::memory_order_acquire);
  }

 private:
  static constexpr int kSpins = 2000;

  static void relax() {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#endif
  }

  ops::TaskShares shares_;
  alignas(64) std::atomic<int32_t> done_{0};  // on a cache line of its own, because it is watched
};

}  // namespace torchquant::island
