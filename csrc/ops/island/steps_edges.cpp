// Step kinds of torchquant::quantize and dequantize with one scale: where floats enter and leave an island.
#include "kernels/fake_quantize.h"
#include "numerics/affine.h"
#include "ops/checks.h"
#include "ops/island/kernel_work.h"
#include "ops/island/step_arguments.h"

namespace torchquant::island {
namespace {

struct Edge {
  numerics::QParams qparams;
  numerics::QRange range;
  bool is_signed;
};

kernels::FloatImageStrides float_strides(const at::Tensor& x) {
  return {x.stride(0), x.stride(1), x.dim() == 4 ? x.stride(2) : 0, x.dim() >= 3 ? x.stride(-1) : 0};
}

// Elements whose order in memory is the same on both sides.
class DenseEdge final : public Work {
 public:
  DenseEdge(const Edge& edge, bool quantizes, Place from, Place to, int64_t elements, int threads)
      : edge_(edge), quantizes_(quantizes), from_(from), to_(to), slices_(elements, 1, threads) {}

  int64_t tasks() const override { return slices_.count(); }
  void run(const Memory& memory, kernels::IndexRange tasks) const override {
    const kernels::IndexRange items = slices_.items(tasks);
    const int64_t count = items.end - items.begin;
    const auto& kernels = kernels::fake_quantize_kernels();
    constexpr int64_t kFloat = sizeof(float);
    if (quantizes_) {
      kernels.quantize_run(memory.at(from_) + items.begin * kFloat, memory.at(to_) + items.begin, count,
                           kernels::FloatType::kFloat32, edge_.qparams, edge_.range);
    } else {
      kernels.dequantize_run(memory.at(from_) + items.begin, memory.at(to_) + items.begin * kFloat, count,
                             edge_.is_signed, kernels::FloatType::kFloat32, edge_.qparams);
    }
  }

 private:
  Edge edge_;
  bool quantizes_;
  Place from_, to_;
  Slices slices_;
};

std::unique_ptr<Work> quantize_image(const Edge& edge, const at::Tensor& x, Place from, const at::Tensor& out, Place to,
                                     int threads) {
  const kernels::QuantizeImageArgs args{out.size(1), nullptr, float_strides(x),  edge.qparams,
                                        edge.range,  nullptr, *image_layout(out)};
  const Slices slices(out.size(0) * args.out_layout.height, args.out_layout.width * args.channels, threads);
  return std::make_unique<KernelWork<kernels::QuantizeImageArgs>>(&kernels::QuantizedKernels::quantize_image, args,
                                                                  from, to, slices);
}

std::unique_ptr<Work> dequantize_image(const Edge& edge, const at::Tensor& x, Place from, const at::Tensor& out,
                                       Place to, int threads) {
  const auto type = edge.is_signed ? kernels::ElementType::kInt8 : kernels::ElementType::kUInt8;
  const kernels::DequantizeImageArgs args{x.size(1), nullptr,           type, *image_layout(x), edge.qparams,
                                          nullptr,   float_strides(out)};
  const Slices slices(x.size(0) * args.x_layout.height, args.x_layout.width * args.channels, threads);
  return std::make_unique<KernelWork<kernels::DequantizeImageArgs>>(&kernels::QuantizedKernels::dequantize_image, args,
                                                                    from, to, slices);
}

bool has_one_scale(const PlanBuilder& builder, const StepView& step) {
  const at::Tensor& scale = builder.constant(step.slot("scale"));
  const at::Tensor& zero_point = builder.constant(step.slot("zero_point"));
  return scale.defined() && zero_point.defined() && scale.numel() == 1 && zero_point.numel() == 1 &&
         step.literal("axis").isNone() && step.literal("group_size").isNone();
}

Edge edge_of(const PlanBuilder& builder, const StepView& step, const char* op, bool is_signed, numerics::QRange range) {
  const auto scale = builder.constant(step.slot("scale")).item<float>();
  const auto zero_point = builder.constant(step.slot("zero_point")).item<float>();
  ops::check_scale_values(op, &scale, 1);
  ops::check_zero_point_values(op, &zero_point, 1);
  return {numerics::make_qparams(scale, zero_point, range), range, is_signed};
}

// ---- quantize ---------------------------------------------------------------------------------------------------

bool quantize_fits(const PlanBuilder& builder, const StepView& step) {
  return builder.eager(step.slot("x")).scalar_type() == at::kFloat && has_one_scale(builder, step);
}

void make_quantize(PlanBuilder& builder, const StepView& step) {
  Slot x = step.slot("x");
  const Slot out = step.result();
  const bool is_signed = step.literal("dtype").toScalarType() == at::kChar;
  const auto bound = [&](const char* name, int64_t otherwise) {
    return step.literal(name).isNone() ? otherwise : integer(step, name);
  };
  const auto range = ops::to_range(bound("quant_min", is_signed ? -128 : 0), bound("quant_max", is_signed ? 127 : 255));
  const Edge edge = edge_of(builder, step, "quantize", is_signed, range);
  const at::Tensor to = builder.physical(out);
  if (!same_dense_layout(builder.physical(x), to) && image_layout(to)) {
    builder.add(quantize_image(edge, builder.physical(x), builder.place(x), to, builder.place(out), builder.threads()),
                {x}, {out});
    return;
  }
  if (!same_dense_layout(builder.physical(x), to)) x = builder.add_copy_like(x, to);
  builder.add(
      std::make_unique<DenseEdge>(edge, true, builder.place(x), builder.place(out), to.numel(), builder.threads()), {x},
      {out});
}

// ---- dequantize -------------------------------------------------------------------------------------------------

bool dequantize_fits(const PlanBuilder& builder, const StepView& step) {
  const at::Tensor& out = builder.eager(step.result());
  return out.scalar_type() == at::kFloat && has_one_scale(builder, step) && out.is_non_overlapping_and_dense();
}

void make_dequantize(PlanBuilder& builder, const StepView& step) {
  Slot q = step.slot("q");
  const Slot out = step.result();
  const bool is_signed = builder.eager(q).scalar_type() == at::kChar;
  const Edge edge =
      edge_of(builder, step, "dequantize", is_signed, is_signed ? ops::to_range(-128, 127) : ops::to_range(0, 255));
  const at::Tensor to = builder.physical(out);
  if (!same_dense_layout(builder.physical(q), to) && image_layout(builder.physical(q))) {
    builder.add(
        dequantize_image(edge, builder.physical(q), builder.place(q), to, builder.place(out), builder.threads()), {q},
        {out});
    return;
  }
  if (!same_dense_layout(builder.physical(q), to)) q = builder.add_copy_like(q, to);
  builder.add(
      std::make_unique<DenseEdge>(edge, false, builder.place(q), builder.place(out), to.numel(), builder.threads()),
      {q}, {out});
}

const RegisterStep kQuantize("torchquant::quantize", {quantize_fits, nullptr, make_quantize, always});
const RegisterStep kDequantize("torchquant::dequantize", {dequantize_fits, nullptr, make_dequantize, always});

}  // namespace
}  // namespace torchquant::island
