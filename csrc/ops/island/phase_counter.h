// Hands out the tasks of one phase to the threads of a run, and lets them wait for its end. Used by plan.cpp.
#pragma once

#include <atomic>
#include <cstdint>

namespace torchquant::island {

class PhaseCounter {
 public:
  void reset() {
    next_.store(0, std::memory_order_relaxed);
    done_.store(0, std::memory_order_relaxed);
  }

  // The number of a task that nobody else gets; numbers from the count of tasks on mean that all are taken.
  int64_t take() { return next_.fetch_add(1, std::memory_order_relaxed); }

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

  // On cache lines of their own: `next_` is written by all while `done_` is watched.
  alignas(64) std::atomic<int64_t> next_{0};
  alignas(64) std::atomic<int32_t> done_{0};
};

}  // namespace torchquant::island
