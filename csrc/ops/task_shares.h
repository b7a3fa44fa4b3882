// Hands out numbered tasks to threads. Used by integer_conv.cpp for one op and by island/phase_counter.h for an island.
#pragma once

#include <atomic>
#include <cstdint>
#include <vector>

#include "kernels/quantized_types.h"

namespace torchquant::ops {

// Every thread has its own share of the tasks, neighbours of each other, and takes from the others' when it is done:
// what a thread wrote in one layer is near it when it reads it in the next, and nobody waits for a thread that the
// machine has stopped.
class TaskShares {
 public:
  explicit TaskShares(int threads) : shares_(threads) {}

  void reset(int64_t tasks) {
    const int threads = static_cast<int>(shares_.size());
    for (int i = 0; i < threads; ++i) {
      const kernels::IndexRange share = kernels::share_of(tasks, threads, i);
      shares_[i].next.store(share.begin, std::memory_order_relaxed);
      shares_[i].end = share.end;
    }
  }

  // A task that nobody else gets; -1 where all are taken. `thread` may be any number from 0.
  int64_t take(int64_t thread) {
    const size_t threads = shares_.size();
    for (size_t i = 0; i < threads; ++i) {
      Share& share = shares_[(thread + i) % threads];
      const int64_t task = share.next.fetch_add(1, std::memory_order_relaxed);
      if (task < share.end) return task;
    }
    return -1;
  }

 private:
  struct alignas(64) Share {
    std::atomic<int64_t> next{0};
    int64_t end = 0;
  };

  std::vector<Share> shares_;
};

}  // namespace torchquant::ops
