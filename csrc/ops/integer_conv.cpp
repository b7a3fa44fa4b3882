// Plans and runs integer convolutions for ops. Called through integer_conv.h.
#include "ops/integer_conv.h"

#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>

#include <algorithm>
#include <bit>
#include <cstring>

#include "ops/quantized_common.h"
#include "ops/task_shares.h"

namespace torchquant::ops {
namespace {

using kernels::Border;
using kernels::ConvProblem;
using kernels::ConvSpec;
using kernels::ImageLayout;

WeightKey conv_key(const ConvSpec& spec, int64_t bits, int64_t quant_min) {
  WeightKey key{WeightKey::Maker::kConv};
  size_t i = 0;
  for (const int64_t value : {static_cast<int64_t>(kernels::selected_isa()), bits, quant_min, spec.in_channels,
                              spec.out_channels, spec.groups, static_cast<int64_t>(spec.transposed)}) {
    key.parameters[i++] = value;
  }
  for (const kernels::ConvAxisSpec& axis : {spec.height, spec.width}) {
    for (const int64_t value : {axis.kernel, axis.stride, axis.padding, axis.dilation, axis.output_padding}) {
      key.parameters[i++] = value;
    }
  }
  return key;
}

std::shared_ptr<const PlannedConv> pack(const at::Tensor& weight, const ConvSpec& spec, int64_t bits,
                                        int64_t quant_min) {
  const int64_t rows = spec.transposed ? spec.in_channels : spec.out_channels;
  const int64_t columns = (spec.transposed ? spec.out_channels : spec.in_channels) / spec.groups;
  const int64_t taps = spec.height.kernel * spec.width.kernel;
  at::Tensor codes = weight;
  if (bits == 4) codes = int8_weight(weight, rows, columns * taps, bits, quant_min);
  if (codes.dim() != 4) codes = codes.reshape({rows, columns, spec.height.kernel, spec.width.kernel});
  const kernels::ConvWeight view{codes.const_data_ptr<int8_t>(),
                                 {codes.stride(0), codes.stride(1), codes.stride(2), codes.stride(3)}};
  return std::make_shared<PlannedConv>(kernels::pack_conv(kernels::selected_isa(), spec, view));
}

// Everything of a problem but its per-channel values.
std::vector<int64_t> problem_numbers(const ConvProblem& p) {
  const auto bits = [](float v) { return static_cast<int64_t>(std::bit_cast<int32_t>(v)); };
  std::vector<int64_t> numbers{p.batch, static_cast<int64_t>(p.x_type), p.x_zero_point, p.threads,
                               p.residual.has_value() ? 1 : 0};
  for (const ImageLayout& layout : {p.in, p.out, p.residual.value_or(ImageLayout{})}) {
    numbers.insert(numbers.end(),
                   {layout.height, layout.width, layout.pixel_pitch, layout.row_pitch, layout.image_pitch});
  }
  const kernels::Residual& residual = p.epilogue.residual;
  numbers.insert(numbers.end(), {static_cast<int64_t>(residual.type), residual.zero_point, bits(residual.multiplier)});
  const kernels::OutputSpec& output = p.epilogue.output;
  numbers.insert(numbers.end(), {static_cast<int64_t>(output.type), static_cast<int64_t>(output.activation.kind)});
  for (const float value :
       {output.zero_point, output.range.quant_min, output.range.quant_max, output.activation.clamp.quant_min,
        output.activation.clamp.quant_max, output.activation.output_scale, output.activation.inv_output_scale}) {
    numbers.push_back(bits(value));
  }
  return numbers;
}

}  // namespace

struct PlannedConv::Planned {
  std::vector<int64_t> numbers;
  std::vector<float> channel_values;  // multipliers, then biases
  std::shared_ptr<const kernels::ConvPlan> plan;

  bool is_for(const std::vector<int64_t>& other, const ConvProblem& problem, int64_t channels) const {
    const size_t bytes = channels * sizeof(float);
    return numbers == other && channel_values.size() == 2 * static_cast<size_t>(channels) &&
           std::memcmp(channel_values.data(), problem.epilogue.multiplier, bytes) == 0 &&
           std::memcmp(channel_values.data() + channels, problem.epilogue.bias, bytes) == 0;
  }
};

std::shared_ptr<const kernels::ConvPlan> PlannedConv::find(const ConvProblem& problem, int64_t channels) const {
  const std::vector<int64_t> numbers = problem_numbers(problem);
  const std::lock_guard lock(mutex_);
  for (auto it = plans_.rbegin(); it != plans_.rend(); ++it) {
    if ((*it)->is_for(numbers, problem, channels)) return (*it)->plan;
  }
  return nullptr;
}

std::shared_ptr<const kernels::ConvPlan> PlannedConv::make(const ConvProblem& problem, int64_t channels) const {
  constexpr size_t kMostPlans = 8;
  auto planned = std::make_shared<Planned>();
  planned->numbers = problem_numbers(problem);
  planned->channel_values.assign(problem.epilogue.multiplier, problem.epilogue.multiplier + channels);
  planned->channel_values.insert(planned->channel_values.end(), problem.epilogue.bias,
                                 problem.epilogue.bias + channels);
  planned->plan = kernels::plan_conv(packed_, problem);
  const std::lock_guard lock(mutex_);
  if (plans_.size() == kMostPlans) plans_.erase(plans_.begin());
  plans_.push_back(planned);
  return planned->plan;
}

std::shared_ptr<const PlannedConv> packed_conv(const at::Tensor& weight, const ConvSpec& spec, int64_t bits,
                                               int64_t quant_min) {
  return cached_weight(weight, conv_key(spec, bits, quant_min), [&] { return pack(weight, spec, bits, quant_min); });
}

ConvSpec conv_spec(int64_t in_channels, int64_t out_channels, const ConvParams& p) {
  const auto axis = [&](size_t i) {
    return kernels::ConvAxisSpec{p.kernel_size[i], p.stride[i], p.padding[i], p.dilation[i], p.output_padding[i]};
  };
  ConvSpec spec{in_channels, out_channels, p.groups, p.transposed};
  if (p.kernel_size.size() == 2) spec.height = axis(0);
  spec.width = axis(p.kernel_size.size() - 1);
  return spec;
}

int plan_threads() { return at::in_parallel_region() ? 1 : at::get_num_threads(); }

void run_plan(const kernels::ConvPlan& plan, const kernels::ConvOperands& operands) {
  const int64_t tasks = plan.tasks();
  const int64_t threads = std::min<int64_t>(tasks, plan_threads());
  if (threads <= 1) return plan.run(operands, {0, tasks});
  TaskShares shares(static_cast<int>(threads));
  shares.reset(tasks);
  at::parallel_for(0, threads, 1, [&](int64_t thread, int64_t) {
    for (int64_t task; (task = shares.take(thread)) >= 0;) plan.run(operands, {task, task + 1});
  });
}

ImageLayout bordered_layout(const ImageLayout& dense, const Border& border) {
  ImageLayout layout = dense;
  layout.row_pitch = (dense.width + border.left + border.right) * dense.pixel_pitch;
  layout.image_pitch = (dense.height + border.top + border.bottom) * layout.row_pitch;
  return layout;
}

BorderedInput::BorderedInput(const at::Tensor& x, const ImageLayout& dense, int64_t batch, const Border& border,
                             int64_t zero_point)
    : data_(x.const_data_ptr()) {
  const ImageLayout layout = bordered_layout(dense, border);
  if (layout.image_pitch == dense.image_pitch && border.tail_bytes == 0) return;
  copy_ = at::empty({batch * layout.image_pitch + border.tail_bytes}, at::kByte);
  uint8_t* target = copy_.mutable_data_ptr<uint8_t>();
  const auto* source = static_cast<const uint8_t*>(data_);
  const int64_t buffer_rows = border.top + dense.height + border.bottom;
  const int64_t row_bytes = dense.width * dense.pixel_pitch;
  const int64_t left = border.left * dense.pixel_pitch;
  const auto zero = static_cast<uint8_t>(zero_point);
  std::memset(target + batch * layout.image_pitch, 0, border.tail_bytes);
  parallel_range(batch * buffer_rows, layout.row_pitch / 16, [&](kernels::IndexRange rows) {
    for (int64_t row = rows.begin; row < rows.end; ++row) {
      uint8_t* out = target + row * layout.row_pitch;
      const int64_t y = row % buffer_rows - border.top;
      if (y < 0 || y >= dense.height) {
        std::memset(out, zero, layout.row_pitch);
        continue;
      }
      std::memset(out, zero, left);
      std::memcpy(out + left, source + row / buffer_rows * dense.image_pitch + y * dense.row_pitch, row_bytes);
      std::memset(out + left + row_bytes, zero, layout.row_pitch - left - row_bytes);
    }
  });
  data_ = target + border.top * layout.row_pitch + left;
}

}  // namespace torchquant::ops
