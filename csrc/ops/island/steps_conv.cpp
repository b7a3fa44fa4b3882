// Step kinds of torchquant::quantized_conv and quantized_linear, on the convolution engine.
#include <ATen/ops/empty.h>

#include "kernels/integer_conv.h"
#include "ops/integer_conv.h"
#include "ops/island/step_arguments.h"

namespace torchquant::island {
namespace {

using kernels::ConvSpec;
using kernels::ImageLayout;

class ConvWork final : public Work {
 public:
  ConvWork(std::shared_ptr<const kernels::ConvPlan> plan, Place x, Place out, std::optional<Place> residual)
      : plan_(std::move(plan)), x_(x), out_(out), residual_(residual) {}

  int64_t tasks() const override { return plan_->tasks(); }
  void run(const Memory& memory, kernels::IndexRange tasks) const override {
    plan_->run({memory.at(x_), memory.at(out_), residual_ ? memory.at(*residual_) : nullptr, nullptr, next_}, tasks);
  }
  const kernels::ConvPlan* conv() const override { return plan_.get(); }
  void set_next_conv(const kernels::ConvPlan* next) override { next_ = next; }

 private:
  std::shared_ptr<const kernels::ConvPlan> plan_;
  const kernels::ConvPlan* next_ = nullptr;  // kept alive by the island's plan
  Place x_, out_;
  std::optional<Place> residual_;
};

bool is_linear(const StepView& step) { return step.step().op == "torchquant::quantized_linear"; }

std::optional<ImageLayout> pixels(const StepView& step, const at::Tensor& tensor) {
  return is_linear(step) ? rows_layout(tensor) : image_layout(tensor);
}

kernels::ConvAxisSpec axis_of(const StepView& step, bool height) {
  const std::vector<int64_t> kernel = integers(step, "kernel_size");
  if (height && kernel.size() == 1) return {};
  const size_t i = height ? 0 : kernel.size() - 1;
  return {kernel[i], integers(step, "stride")[i], integers(step, "padding")[i], integers(step, "dilation")[i],
          integers(step, "output_padding")[i]};
}

ConvSpec spec_of(const PlanBuilder& builder, const StepView& step) {
  const at::Tensor& x = builder.eager(step.slot("x"));
  const at::Tensor& out = builder.eager(step.result());
  if (is_linear(step)) return {.in_channels = x.size(-1), .out_channels = out.size(-1)};
  return {.in_channels = x.size(1),
          .out_channels = out.size(1),
          .groups = integer(step, "groups"),
          .transposed = step.literal("transposed").toBool(),
          .height = axis_of(step, /*height=*/true),
          .width = axis_of(step, /*height=*/false)};
}

// Shared with every other reader of the weight.
std::shared_ptr<const kernels::PackedConv> packed(const PlanBuilder& builder, const StepView& step) {
  return ops::packed_conv(builder.constant(step.slot("weight")), spec_of(builder, step), integer(step, "weight_bits"),
                          integer(step, "weight_quant_min"))
      ->packed();
}

kernels::Epilogue epilogue_of(const PlanBuilder& builder, const StepView& step) {
  const char* op = is_linear(step) ? "quantized_linear" : "quantized_conv";
  const at::Tensor& multiplier = builder.constant(step.slot("multiplier"));
  const at::Tensor& bias = builder.constant(step.slot("bias"));
  ops::check_values(op, "multiplier", multiplier, /*positive=*/false);
  ops::check_values(op, "bias", bias, /*positive=*/false);
  kernels::Residual residual;
  if (const Slot slot = step.slot("residual"); slot != kNoSlot) {
    residual = {nullptr, ops::element_type(builder.eager(slot).scalar_type()),
                static_cast<int32_t>(integer(step, "residual_zero_point")),
                static_cast<float>(real(step, "residual_multiplier"))};
  }
  return {multiplier.const_data_ptr<float>(), bias.const_data_ptr<float>(), residual, output_spec(op, step)};
}

std::shared_ptr<const kernels::ConvPlan> plan(const PlanBuilder& builder, const StepView& step, const at::Tensor& x,
                                              const at::Tensor& out, const at::Tensor& residual) {
  const int64_t batch = is_linear(step) ? 1 : x.size(0);
  std::optional<ImageLayout> residual_layout;
  if (residual.defined()) residual_layout = pixels(step, residual);
  return kernels::plan_conv(
      packed(builder, step),
      {batch, *pixels(step, x), *pixels(step, out), residual_layout, ops::element_type(x.scalar_type()),
       static_cast<int32_t>(integer(step, "x_zero_point")), epilogue_of(builder, step), builder.threads()});
}

// A tensor of the same sizes that lies as the engine likes it best, to ask about borders before anything has its place.
at::Tensor dense_like(const StepView& step, const at::Tensor& tensor) {
  if (is_linear(step)) return tensor.contiguous();
  std::vector<int64_t> sizes = tensor.sizes().vec();
  std::rotate(sizes.begin() + 1, sizes.begin() + 2, sizes.end());
  return at::empty(sizes, tensor.options()).movedim(-1, 1);
}

int32_t fill_of(const StepView& step) { return static_cast<int32_t>(integer(step, "x_zero_point")); }

bool fits(const PlanBuilder& builder, const StepView& step) {
  const auto stored = [&](const char* name) { return builder.constant(step.slot(name)).defined(); };
  const auto dense = [&](const char* name) { return builder.constant(step.slot(name)).is_contiguous(); };
  return stores_directly(step) && stored("weight") && stored("multiplier") && stored("bias") && dense("multiplier") &&
         dense("bias");
}

void wish(PlanBuilder& builder, const StepView& step) {
  const Slot x = step.slot("x");
  if (!is_linear(step)) {
    builder.wish_channels_last(x);
    if (step.slot("residual") != kNoSlot) builder.wish_channels_last(step.slot("residual"));
  }
  const auto dense = [&](Slot slot) { return *pixels(step, dense_like(step, builder.eager(slot))); };
  builder.wish_border(x, packed(builder, step)->input_border(dense(x), dense(step.result())), fill_of(step));
}

Slot add_copy(PlanBuilder& builder, const StepView& step, Slot slot, const kernels::Border& border) {
  if (is_linear(step)) return builder.add_copy_like(slot, builder.eager(slot).contiguous());
  return builder.add_bordered_copy(slot, border, fill_of(step));
}

// A tensor that the engine cannot read as it lies is copied.
Slot readable(PlanBuilder& builder, const StepView& step, Slot slot) {
  const bool fits = slot == kNoSlot || pixels(step, builder.physical(slot));
  return fits ? slot : add_copy(builder, step, slot, {});
}

void make(PlanBuilder& builder, const StepView& step) {
  Slot x = readable(builder, step, step.slot("x"));
  const Slot residual = readable(builder, step, step.slot("residual"));
  const Slot out = step.result();
  const auto tensor = [&](Slot slot) { return slot == kNoSlot ? at::Tensor() : builder.physical(slot); };
  auto planned = plan(builder, step, tensor(x), tensor(out), tensor(residual));
  if (!builder.has_border(x, planned->input_border(), fill_of(step))) {
    x = add_copy(builder, step, x, planned->input_border());
    planned = plan(builder, step, tensor(x), tensor(out), tensor(residual));
  }
  std::optional<Place> residual_place;
  std::vector<Slot> reads{x};
  if (residual != kNoSlot) {
    residual_place = builder.place(residual);
    reads.push_back(residual);
  }
  builder.add(std::make_unique<ConvWork>(planned, builder.place(x), builder.place(out), residual_place), reads, {out});
}

// [depth] alone is one row: its first dimension counts no images.
bool has_rows(const PlanBuilder& builder, const StepView& step) { return builder.eager(step.slot("x")).dim() > 1; }

const RegisterStep kConv("torchquant::quantized_conv", {fits, wish, make, always});
const RegisterStep kLinear("torchquant::quantized_linear", {fits, wish, make, has_rows});

}  // namespace
}  // namespace torchquant::island
