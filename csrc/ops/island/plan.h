// An island planned for fixed shapes: runs without dispatch, without allocating anything, and in one parallel region as
// long as every op has a step kind. Made and run by batch_plan.cpp.
#pragma once

#include <ATen/core/Tensor.h>

#include <memory>
#include <mutex>
#include <vector>

#include "ops/island/plan_builder.h"

namespace torchquant::island {

class Plan {
 public:
  // nullptr where the program cannot be planned for these operands: it must be interpreted.
  static std::shared_ptr<const Plan> make(const Program& program, const Operands& operands, int threads);
  ~Plan();

  // Operands must have the types and strides that the plan was made for, and its sizes or, where it counts images
  // (separate_images()), more images than its own: then it runs on those from `first_image`. Threads may call it at
  // once.
  void run(at::TensorList inputs, at::TensorList constants, at::TensorList outputs, int64_t first_image = 0) const;

  const std::vector<OutputSpec>& outputs() const { return outputs_; }
  int64_t separate_images() const { return separate_images_; }  // as PlanBuilder says
  int64_t arena_bytes() const { return arena_bytes_; }

 private:
  struct Context;
  class Lease;

  Plan(PlanBuilder&& builder, int threads);
  std::unique_ptr<Context> make_context() const;
  void place_arena();
  void run_phases(Context& context) const;
  void run_together(Context& context, size_t first, size_t last) const;
  void work_through(Context& context, size_t first, size_t last, int64_t thread) const;
  void run_task(const Context& context, size_t phase, int64_t task) const;

  int threads_;
  int64_t separate_images_;
  std::vector<Phase> phases_;
  std::vector<int64_t> tasks_;  // of each phase
  std::vector<Buffer> buffers_;
  std::vector<int64_t> arena_offsets_;  // of each buffer
  int64_t arena_bytes_ = 0;
  std::vector<OutputSpec> outputs_;

  // What a run needs for itself; runs at the same time have one each.
  mutable std::mutex mutex_;
  mutable std::vector<std::unique_ptr<Context>> free_;
};

}  // namespace torchquant::island
