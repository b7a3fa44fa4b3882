// Step kinds of torchquant::quantized_add, quantized_mul and quantized_lookup.
#include "kernels/quantized_kernels.h"
#include "ops/island/step_arguments.h"

namespace torchquant::island {
namespace {

using kernels::PointwiseImages;
using kernels::QuantizedKernels;

// Points the arguments of one call at their memory, at element `first` of dense runs.
void point(kernels::AddArgs& args, const std::byte* a, const std::byte* b, std::byte* out) {
  args.a.data = a;
  args.b.data = b;
  args.out = out;
}
void point(kernels::MulArgs& args, const std::byte* a, const std::byte* b, std::byte* out) {
  args.a.data = a;
  args.b.data = b;
  args.out = out;
}
void point(kernels::LookupArgs& args, const std::byte* a, const std::byte* /*b*/, std::byte* out) {
  args.x = a;
  args.out = out;
}

// The kernels of one op: over dense runs, and over images where the tensors lie differently.
template <typename Args>
struct Kernels {
  void (*QuantizedKernels::*dense)(const Args&, kernels::IndexRange);
  void (*QuantizedKernels::*images)(const Args&, const PointwiseImages&, kernels::IndexRange);
};

template <typename Args>
class Pointwise final : public Work {
 public:
  // Without images the tensors are dense runs.
  Pointwise(const Args& args, Kernels<Args> kernels, std::optional<PointwiseImages> images, Place a, Place b, Place out,
            const Slices& slices)
      : args_(args), kernels_(kernels), images_(images), a_(a), b_(b), out_(out), slices_(slices) {}

  int64_t tasks() const override { return slices_.count(); }
  void run(const Memory& memory, kernels::IndexRange tasks) const override {
    Args args = args_;
    point(args, memory.at(a_), memory.at(b_), memory.at(out_));
    const QuantizedKernels& table = kernels::quantized_kernels();
    if (images_) {
      (table.*kernels_.images)(args, *images_, slices_.items(tasks));
    } else {
      (table.*kernels_.dense)(args, slices_.items(tasks));
    }
  }

 private:
  Args args_;
  Kernels<Args> kernels_;
  std::optional<PointwiseImages> images_;
  Place a_, b_, out_;
  Slices slices_;
};

// All three as images of the output's sizes; nullopt where an operand has other strides or repeats channels.
std::optional<PointwiseImages> images_of(const at::Tensor& a, const at::Tensor& b, const at::Tensor& out) {
  const auto a_layout = a.size(1) == out.size(1) ? image_layout(a.expand(out.sizes())) : std::nullopt;
  const auto b_layout = b.size(1) == out.size(1) ? image_layout(b.expand(out.sizes())) : std::nullopt;
  const auto out_layout = image_layout(out);
  if (!a_layout || !b_layout || !out_layout) return std::nullopt;
  return PointwiseImages{out.size(1), *a_layout, *b_layout, *out_layout};
}

bool has_rank_of(const at::Tensor& a, const at::Tensor& out) { return a.dim() == out.dim() && out.dim() >= 2; }

template <typename Args>
void add_pointwise(PlanBuilder& builder, const Args& args, Kernels<Args> kernels, Slot a, Slot b, Slot out) {
  const at::Tensor to = builder.physical(out);
  const auto add = [&](std::optional<PointwiseImages> images, const Slices& slices) {
    builder.add(std::make_unique<Pointwise<Args>>(args, kernels, images, builder.place(a), builder.place(b),
                                                  builder.place(out), slices),
                {a, b}, {out});
  };
  const bool a_matches = same_dense_layout(builder.physical(a), to);
  const bool b_matches = same_dense_layout(builder.physical(b), to);
  if (!a_matches || !b_matches) {
    const bool ranks = has_rank_of(builder.physical(a), to) && has_rank_of(builder.physical(b), to);
    const auto images = ranks ? images_of(builder.physical(a), builder.physical(b), to) : std::nullopt;
    if (images) {
      const int64_t row_cost = images->out.width * images->channels / 4;
      return add(images, Slices(to.size(0) * images->out.height, row_cost, builder.threads()));
    }
    const bool same = a == b;
    if (!a_matches) a = builder.add_copy_like(a, to);
    if (same) {
      b = a;
    } else if (!b_matches) {
      b = builder.add_copy_like(b, to);
    }
  }
  add(std::nullopt, Slices(to.numel(), 1, builder.threads()));
}

void wish_like_result(PlanBuilder& builder, const StepView& step, std::initializer_list<const char*> names) {
  const at::Tensor& out = builder.eager(step.result());
  if (out.dim() < 3 || out.stride(1) != 1) return;
  for (const char* name : names) {
    if (builder.eager(step.slot(name)).dim() == out.dim()) builder.wish_channels_last(step.slot(name));
  }
}

// Results must be dense, or images, to be computed where they lie.
bool result_fits(const PlanBuilder& builder, const StepView& step) {
  return stores_directly(step) && builder.eager(step.result()).is_non_overlapping_and_dense();
}

kernels::Operand operand(const PlanBuilder& builder, const StepView& step, const char* name) {
  return {nullptr, ops::element_type(builder.eager(step.slot(name)).scalar_type()),
          static_cast<int32_t>(integer(step, (std::string(name) + "_zero_point").c_str()))};
}

// A lower rank broadcasts along the first dimension.
bool ranks_agree(const PlanBuilder& builder, const StepView& step) {
  return builder.eager(step.slot("a")).dim() == builder.eager(step.slot("b")).dim();
}

// ---- add --------------------------------------------------------------------------------------------------------

void wish_operands(PlanBuilder& builder, const StepView& step) { wish_like_result(builder, step, {"a", "b"}); }

void make_add(PlanBuilder& builder, const StepView& step) {
  const kernels::AddArgs args{operand(builder, step, "a"),
                              operand(builder, step, "b"),
                              static_cast<float>(real(step, "a_multiplier")),
                              static_cast<float>(real(step, "b_multiplier")),
                              output_spec("quantized_add", step),
                              nullptr};
  add_pointwise<kernels::AddArgs>(builder, args, {&QuantizedKernels::add, &QuantizedKernels::add_image}, step.slot("a"),
                                  step.slot("b"), step.result());
}

// ---- mul --------------------------------------------------------------------------------------------------------

void make_mul(PlanBuilder& builder, const StepView& step) {
  const kernels::MulArgs args{operand(builder, step, "a"), operand(builder, step, "b"),
                              static_cast<float>(real(step, "multiplier")), output_spec("quantized_mul", step),
                              nullptr};
  add_pointwise<kernels::MulArgs>(builder, args, {&QuantizedKernels::mul, &QuantizedKernels::mul_image}, step.slot("a"),
                                  step.slot("b"), step.result());
}

// ---- lookup -----------------------------------------------------------------------------------------------------

bool lookup_fits(const PlanBuilder& builder, const StepView& step) {
  const at::Tensor& table = builder.constant(step.slot("table"));
  return table.defined() && table.is_contiguous() && builder.eager(step.result()).is_non_overlapping_and_dense();
}

void wish_input(PlanBuilder& builder, const StepView& step) { wish_like_result(builder, step, {"x"}); }

void make_lookup(PlanBuilder& builder, const StepView& step) {
  const Slot x = step.slot("x");
  const at::Tensor& table = builder.constant(step.slot("table"));
  const kernels::LookupArgs args{nullptr, ops::element_type(builder.eager(x).scalar_type()), table.const_data_ptr(),
                                 static_cast<int64_t>(table.element_size()), nullptr};
  add_pointwise<kernels::LookupArgs>(builder, args, {&QuantizedKernels::lookup, &QuantizedKernels::lookup_image}, x, x,
                                     step.result());
}

const RegisterStep kAdd("torchquant::quantized_add", {result_fits, wish_operands, make_add, ranks_agree});
const RegisterStep kMul("torchquant::quantized_mul", {result_fits, wish_operands, make_mul, ranks_agree});
const RegisterStep kLookup("torchquant::quantized_lookup", {lookup_fits, wish_input, make_lookup, always});

}  // namespace
}  // namespace torchquant::island
