// An island planned for fixed shapes, a large batch cut into parts whose values stay in the cache. Made and kept by
// plan_cache.cpp.
#pragma once

#include <ATen/core/Tensor.h>

#include <memory>
#include <vector>

#include "ops/island/plan.h"

namespace torchquant::island {

class BatchPlan {
 public:
  // nullptr where the program cannot be planned for these operands: it must be interpreted.
  static std::shared_ptr<const BatchPlan> make(const Program& program, const Operands& operands, int threads);

  // Operands must have the shapes, types and strides that the plan was made for. Threads may call it at once.
  std::vector<at::Tensor> run(at::TensorList inputs, at::TensorList constants) const;

  // One for a batch that runs whole.
  size_t parts() const { return parts_.size(); }

 private:
  // A plan, and from which image on it runs.
  struct Part {
    std::shared_ptr<const Plan> plan;
    int64_t first_image;
  };

  std::vector<OutputSpec> outputs_;
  std::vector<Part> parts_;
};

}  // namespace torchquant::island
