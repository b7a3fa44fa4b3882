// Step kind of aten::cat: what it joins is computed in its place, as far as the layouts allow; the rest is copied.
#include "ops/island/copy_work.h"
#include "ops/island/step_arguments.h"

namespace torchquant::island {
namespace {

int64_t dim_of(const PlanBuilder& builder, const StepView& step) {
  const int64_t dim = integer(step, "dim");
  return dim < 0 ? dim + builder.eager(step.result()).dim() : dim;
}

bool fits(const PlanBuilder& builder, const StepView& step) {
  const at::Tensor& out = builder.eager(step.result());
  const std::vector<Slot>& parts = step.slots("tensors");
  return out.is_non_overlapping_and_dense() && std::all_of(parts.begin(), parts.end(), [&](Slot part) {
           return builder.eager(part).scalar_type() == out.scalar_type() && builder.eager(part).dim() == out.dim();
         });
}

// Calls visit(part, start) for each part, with its position along `dim`.
template <typename Visit>
void for_each_part(const PlanBuilder& builder, const StepView& step, int64_t dim, const Visit& visit) {
  int64_t start = 0;
  for (const Slot part : step.slots("tensors")) {
    visit(part, start);
    start += builder.eager(part).size(dim);
  }
}

void wish(PlanBuilder& builder, const StepView& step) {
  const int64_t dim = dim_of(builder, step);
  for_each_part(builder, step, dim, [&](Slot part, int64_t start) {
    if (image_layout(builder.eager(step.result()))) builder.wish_channels_last(part);
    builder.wish_inside(part, step.result(), dim, start);
  });
}

void make(PlanBuilder& builder, const StepView& step) {
  const int64_t dim = dim_of(builder, step);
  const Slot out = step.result();
  for_each_part(builder, step, dim, [&](Slot part, int64_t start) {
    const at::Tensor target = builder.physical(out).narrow(dim, start, builder.eager(part).size(dim));
    const int64_t bytes = target.storage_offset() * static_cast<int64_t>(target.element_size());
    // Twice in one list, a part lies in only one of its places.
    const bool in_place = builder.lies_inside(part, out) && builder.place(part).offset == bytes;
    if (in_place) return;
    builder.add(make_copy(builder.physical(part), builder.place(part), target, {builder.place(out).buffer, bytes},
                          builder.threads()),
                {part}, {out});
  });
}

bool joins_within_images(const PlanBuilder& builder, const StepView& step) { return dim_of(builder, step) != 0; }

const RegisterStep kCat("aten::cat", {fits, wish, make, joins_within_images});

}  // namespace
}  // namespace torchquant::island
