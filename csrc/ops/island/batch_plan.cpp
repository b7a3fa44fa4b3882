// How many images an island takes at a time; see batch_plan.h.
#include "ops/island/batch_plan.h"

#include <ATen/ops/empty_strided.h>

#include <algorithm>

namespace torchquant::island {
namespace {

// What the values of one part may take up. Above it a layer's output has left the nearer caches before the next layer
// reads it; far below it the weights are read more often than the values are saved.
constexpr int64_t kPartBytes = int64_t{8} << 20;

// Images in each of as few parts as fit kPartBytes, nearly equal ones; `images` if they need not be cut.
int64_t images_in_part(const Plan& whole) {
  const int64_t images = whole.separate_images();
  const int64_t parts = std::min(images, (whole.arena_bytes() + kPartBytes - 1) / kPartBytes);
  return parts <= 1 ? images : (images + parts - 1) / parts;
}

// Whether a part of `images` images computes what the whole computes on them. Sizes that are written in the program may
// hold for the whole batch only.
bool belongs_to(const Plan& whole, const Plan& part, int64_t images) {
  return part.separate_images() == images &&
         std::equal(whole.outputs().begin(), whole.outputs().end(), part.outputs().begin(), part.outputs().end(),
                    [&](const OutputSpec& a, const OutputSpec& b) {
                      return b.sizes.at(0) == images && a.dtype == b.dtype &&
                             std::equal(a.sizes.begin() + 1, a.sizes.end(), b.sizes.begin() + 1, b.sizes.end()) &&
                             std::equal(a.strides.begin() + 1, a.strides.end(), b.strides.begin() + 1, b.strides.end());
                    });
}

// nullptr where the program takes no part of the batch.
std::shared_ptr<const Plan> plan_part(const Program& program, const Operands& operands, const Plan& whole,
                                      int64_t images, int threads) {
  std::vector<at::Tensor> inputs;
  for (const at::Tensor& input : operands.inputs) inputs.push_back(input.narrow(0, 0, images));
  try {
    auto part = Plan::make(program, {inputs, operands.sizes, operands.constants}, threads);
    return part && belongs_to(whole, *part, images) ? part : nullptr;
  } catch (const c10::Error&) {
    return nullptr;
  }
}

}  // namespace

std::shared_ptr<const BatchPlan> BatchPlan::make(const Program& program, const Operands& operands, int threads) {
  const auto whole = Plan::make(program, operands, threads);
  if (!whole) return nullptr;
  auto made = std::make_shared<BatchPlan>();
  made->outputs_ = whole->outputs();
  made->parts_ = {{whole, 0}};
  const int64_t images = whole->separate_images();
  const int64_t each = images_in_part(*whole);
  if (each == images) return made;
  const auto part = plan_part(program, operands, *whole, each, threads);
  const int64_t left = images % each;
  const auto rest = left > 0 ? plan_part(program, operands, *whole, left, threads) : part;
  if (!part || !rest) return made;
  made->parts_.clear();
  for (int64_t first = 0; first < images; first += each) {
    made->parts_.push_back({images - first < each ? rest : part, first});
  }
  return made;
}

std::vector<at::Tensor> BatchPlan::run(at::TensorList inputs, at::TensorList constants) const {
  std::vector<at::Tensor> outputs;
  outputs.reserve(outputs_.size());
  for (const OutputSpec& spec : outputs_) {
    outputs.push_back(at::empty_strided(spec.sizes, spec.strides, at::TensorOptions(spec.dtype)));
  }
  for (const Part& part : parts_) part.plan->run(inputs, constants, outputs, part.first_image);
  return outputs;
}

}  // namespace torchquant::island
