// Step kind of torchquant::quantized_matmul.
#include "kernels/integer_matmul.h"
#include "ops/island/step_arguments.h"
#include "ops/quantized_matmul.h"

namespace torchquant::island {
namespace {

class Matmul final : public Work {
 public:
  Matmul(const kernels::MatmulArgs& args, Place a, Place b, Place out, int threads)
      : args_(args),
        a_(a),
        b_(b),
        out_(out),
        panels_(kernels::matmul_panels(args), ops::matmul_panel_cost(args), threads) {}

  int64_t tasks() const override { return panels_.count(); }
  void run(const Memory& memory, kernels::IndexRange tasks) const override {
    kernels::MatmulArgs args = args_;
    args.a.data = memory.at(a_);
    args.b.data = memory.at(b_);
    args.out = memory.at(out_);
    kernels::integer_matmul(kernels::selected_isa())(args, panels_.items(tasks));
  }

 private:
  kernels::MatmulArgs args_;
  Place a_, b_, out_;
  Slices panels_;
};

kernels::Operand operand(const PlanBuilder& builder, const StepView& step, const char* name, const char* zero_point) {
  return {nullptr, ops::element_type(builder.eager(step.slot(name)).scalar_type()),
          static_cast<int32_t>(integer(step, zero_point))};
}

bool fits(const PlanBuilder& /*builder*/, const StepView& step) { return stores_directly(step); }

void make(PlanBuilder& builder, const StepView& step) {
  const auto readable = [&](const char* name, bool (*reads)(const at::Tensor&)) {
    const Slot slot = step.slot(name);
    return reads(builder.physical(slot)) ? slot : builder.add_copy_like(slot, builder.eager(slot).contiguous());
  };
  const Slot a = readable("a", ops::matmul_reads_a), b = readable("b", ops::matmul_reads_b);
  // Whoever reads the result may have asked for channels last, in which rows are not dense.
  const Slot wanted = step.result();
  const bool dense_rows = builder.physical(wanted).stride(-1) == 1 || builder.physical(wanted).size(-1) == 1;
  const Slot out = dense_rows ? wanted : builder.add_like(wanted);
  kernels::MatmulArgs args = ops::matmul_args(builder.physical(a), builder.physical(b), builder.physical(out));
  args.a = operand(builder, step, "a", "a_zero_point");
  args.b = operand(builder, step, "b", "b_zero_point");
  args.multiplier = static_cast<float>(real(step, "multiplier"));
  args.output = output_spec("quantized_matmul", step);
  builder.add(std::make_unique<Matmul>(args, builder.place(a), builder.place(b), builder.place(out), builder.threads()),
              {a, b}, {out});
  if (!dense_rows) builder.add_copy(out, wanted);
}

// Both have a batch in their first dimension.
bool keeps_images_apart(const PlanBuilder& builder, const StepView& step) {
  const at::Tensor &a = builder.eager(step.slot("a")), &b = builder.eager(step.slot("b"));
  return a.dim() == b.dim() && a.dim() > 2;
}

const RegisterStep kMatmul("torchquant::quantized_matmul", {fits, nullptr, make, keeps_images_apart});

}  // namespace
}  // namespace torchquant::island
