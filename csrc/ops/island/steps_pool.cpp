// Step kinds of the integer pools.
#include "ops/island/kernel_work.h"
#include "ops/island/step_arguments.h"
#include "ops/quantized_pool_common.h"

namespace torchquant::island {
namespace {

using ops::PoolParams;
using ops::windows_of;

bool is_image(const PlanBuilder& builder, const StepView& step) {
  const int64_t dims = builder.eager(step.slot("x")).dim();
  return dims == 3 || dims == 4;
}

void wish(PlanBuilder& builder, const StepView& step) { builder.wish_channels_last(step.slot("x")); }

Slot readable(PlanBuilder& builder, const StepView& step) {
  const Slot x = step.slot("x");
  return image_layout(builder.physical(x)) ? x : builder.add_bordered_copy(x, {}, 0);
}

struct PoolSettings {
  std::vector<int64_t> kernel, stride, padding, dilation;
  bool ceil_mode;

  PoolParams params() const { return {kernel, stride, padding, dilation, ceil_mode}; }
};

PoolSettings settings_of(const StepView& step, bool dilated) {
  const std::vector<int64_t> kernel = integers(step, "kernel_size");
  return {kernel, integers(step, "stride"), integers(step, "padding"),
          dilated ? integers(step, "dilation") : std::vector<int64_t>(kernel.size(), 1),
          step.literal("ceil_mode").toBool()};
}

int64_t pixels_of(const at::Tensor& image) { return image.numel() / image.size(1); }

// ---- max --------------------------------------------------------------------------------------------------------

void make_max_pool(PlanBuilder& builder, const StepView& step) {
  const Slot x = readable(builder, step);
  const Slot out = step.result();
  const at::Tensor& images = builder.physical(x);
  const PoolSettings settings = settings_of(step, /*dilated=*/true);
  kernels::MaxPoolArgs args{};
  args.channels = images.size(1);
  args.height = ops::max_pool_axis(settings.params(), /*height=*/true);
  args.width = ops::max_pool_axis(settings.params(), /*height=*/false);
  args.x_layout = *image_layout(images);
  args.type = ops::element_type(images.scalar_type());
  args.pad_value = static_cast<int32_t>(integer(step, "pad_value"));
  args.out_layout = *image_layout(builder.physical(out));
  const int64_t cost = args.channels * args.height.kernel * args.width.kernel / 16;
  const Slices slices(pixels_of(builder.physical(out)), cost, builder.threads());
  builder.add(std::make_unique<KernelWork<kernels::MaxPoolArgs>>(&kernels::QuantizedKernels::max_pool, args,
                                                                 builder.place(x), builder.place(out), slices),
              {x}, {out});
}

// ---- average ----------------------------------------------------------------------------------------------------

struct Windows {
  std::vector<kernels::PoolWindow> rows, columns;
};

bool averages_directly(const PlanBuilder& builder, const StepView& step) {
  return is_image(builder, step) && stores_directly(step);
}

void make_average(PlanBuilder& builder, const StepView& step, const char* op, int64_t divisor, Windows made) {
  const Slot x = readable(builder, step);
  const Slot out = step.result();
  const at::Tensor& images = builder.physical(x);
  kernels::AvgPoolArgs args{};
  const auto windows = std::make_shared<const Windows>(std::move(made));
  args.channels = images.size(1);
  args.rows = windows->rows.data();
  args.columns = windows->columns.data();
  args.divisor = divisor;
  args.x_layout = *image_layout(images);
  args.x_type = ops::element_type(images.scalar_type());
  args.x_zero_point = static_cast<int32_t>(integer(step, "x_zero_point"));
  args.multiplier = static_cast<float>(real(step, "multiplier"));
  args.output = ops::avg_pool_output(op, builder.eager(x), integer(step, "x_zero_point"), real(step, "multiplier"),
                                     integer(step, "output_zero_point"), integer(step, "output_quant_min"),
                                     integer(step, "output_quant_max"), step.literal("output_dtype").toScalarType());
  args.out_layout = *image_layout(builder.physical(out));
  const kernels::PoolWindow& row = windows->rows[0];
  const kernels::PoolWindow& column = windows->columns[0];
  const int64_t window = (row.end - row.begin) * (column.end - column.begin);
  const Slices slices(pixels_of(builder.physical(out)), args.channels * window / 8, builder.threads());
  builder.add(std::make_unique<KernelWork<kernels::AvgPoolArgs>>(&kernels::QuantizedKernels::avg_pool, args,
                                                                 builder.place(x), builder.place(out), slices, windows),
              {x}, {out});
}

struct Heights {
  int64_t in, out;
};

Heights heights_of(const at::Tensor& x, const at::Tensor& out) {
  return x.dim() == 3 ? Heights{1, 1} : Heights{x.size(2), out.size(2)};
}

// The op refuses windows whose sum could leave int32.
bool sums_fit(const PlanBuilder& builder, const StepView& step) {
  const at::Tensor& x = builder.eager(step.slot("x"));
  return x.numel() / x.size(0) / x.size(1) <= std::numeric_limits<int32_t>::max() / 255;
}

bool avg_pool_fits(const PlanBuilder& builder, const StepView& step) {
  return averages_directly(builder, step) && sums_fit(builder, step);
}

void make_avg_pool(PlanBuilder& builder, const StepView& step) {
  const at::Tensor& x = builder.eager(step.slot("x"));
  const at::Tensor& out = builder.eager(step.result());
  const PoolSettings settings = settings_of(step, /*dilated=*/false);
  const bool include_pad = step.literal("count_include_pad").toBool();
  const c10::IValue& divisor = step.literal("divisor_override");
  const Heights heights = heights_of(x, out);
  make_average(
      builder, step, "quantized_avg_pool", divisor.isNone() ? 0 : divisor.toInt(),
      {windows_of(ops::pool_axis(heights.in, heights.out, settings.params(), /*height=*/true, include_pad)),
       windows_of(ops::pool_axis(x.size(-1), out.size(-1), settings.params(), /*height=*/false, include_pad))});
}

void make_adaptive_avg_pool(PlanBuilder& builder, const StepView& step) {
  const at::Tensor& x = builder.eager(step.slot("x"));
  const at::Tensor& out = builder.eager(step.result());
  const Heights heights = heights_of(x, out);
  make_average(builder, step, "quantized_adaptive_avg_pool", /*divisor=*/0,
               {windows_of(ops::adaptive_axis(heights.in, heights.out)),
                windows_of(ops::adaptive_axis(x.size(-1), out.size(-1)))});
}

const RegisterStep kMaxPool("torchquant::quantized_max_pool", {is_image, wish, make_max_pool, always});
const RegisterStep kAvgPool("torchquant::quantized_avg_pool", {avg_pool_fits, wish, make_avg_pool, always});
const RegisterStep kAdaptiveAvgPool("torchquant::quantized_adaptive_avg_pool",
                                    {avg_pool_fits, wish, make_adaptive_avg_pool, always});

}  // namespace
}  // namespace torchquant::island
