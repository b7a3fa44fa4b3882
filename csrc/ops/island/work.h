// What a planned island does at run time: work on memory whose addresses are known only then. Made by the step kinds of
// this folder (steps_*.cpp), run by plan.cpp.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "kernels/quantized_types.h"

namespace torchquant::kernels {
class ConvPlan;
}

namespace torchquant::island {

// A position in one of the plan's buffers, in bytes.
struct Place {
  int64_t buffer = -1;
  int64_t offset = 0;
};

// The addresses of one run: where each buffer of the plan begins.
struct Memory {
  std::vector<std::byte*> bases;

  std::byte* at(const Place& place) const { return bases[place.buffer] + place.offset; }
};

// Independent tasks of roughly equal cost. Immutable: several runs may share it.
class Work {
 public:
  virtual ~Work() = default;
  virtual int64_t tasks() const = 0;
  virtual void run(const Memory& memory, kernels::IndexRange tasks) const = 0;
  // The convolution or linear layer that this is, which fetches the weights of the one after it; null for other work.
  virtual const kernels::ConvPlan* conv() const { return nullptr; }
  virtual void set_next_conv(const kernels::ConvPlan*) {}
};

// Cuts `items` that cost `item_cost` elementary operations each into tasks for `threads` threads: several for each, so
// that a thread that comes late takes fewer, but none so small that handing it out costs more than doing it.
class Slices {
 public:
  Slices() = default;
  Slices(int64_t items, int64_t item_cost, int threads);

  int64_t count() const { return (items_ + each_ - 1) / each_; }
  kernels::IndexRange items(kernels::IndexRange tasks) const;

 private:
  int64_t items_ = 0;
  int64_t each_ = 1;
};

}  // namespace torchquant::island
