// The integer convolution engine that every processor runs: the reference convolution behind the engine's interface.
// Reached through kernels/integer_conv.h.
#include <algorithm>
#include <utility>
#include <vector>

#include "kernels/cpu/integer_conv_engines.h"
#include "kernels/cpu/quantized_conv_reference.h"

namespace torchquant::kernels::reference {
namespace {

ConvAxis axis_of(const ConvAxisSpec& spec, int64_t in_size, int64_t out_size) {
  return {in_size, out_size, spec.kernel, spec.stride, spec.padding, spec.dilation};
}

// Sizes that are 0 where only weights are meant.
ConvGeometry geometry_of(const ConvSpec& spec, int64_t batch, const ImageLayout& in, const ImageLayout& out) {
  return {batch,
          spec.in_channels,
          spec.out_channels,
          spec.groups,
          spec.transposed,
          axis_of(spec.height, in.height, out.height),
          axis_of(spec.width, in.width, out.width)};
}

// Per-channel values of a plan, which outlive the tensors that they came from.
class ReferencePlan final : public ConvPlan {
 public:
  ReferencePlan(const ConvSpec& spec, const int8_t* weight, std::shared_ptr<const PackedConv> owner,
                const ConvProblem& problem)
      : owner_(std::move(owner)),
        multiplier_(problem.epilogue.multiplier, problem.epilogue.multiplier + spec.out_channels),
        bias_(problem.epilogue.bias, problem.epilogue.bias + spec.out_channels),
        args_{geometry_of(spec, problem.batch, problem.in, problem.out),
              problem.in,
              problem.out,
              problem.residual.value_or(ImageLayout{}),
              nullptr,
              problem.x_type,
              problem.x_zero_point,
              weight,
              problem.epilogue,
              nullptr} {
    args_.epilogue.multiplier = multiplier_.data();
    args_.epilogue.bias = bias_.data();
  }

  Border input_border() const override { return {}; }
  int64_t tasks() const override { return args_.geometry.batch * args_.geometry.height.out_size * parts(); }

  using ConvPlan::run;
  void run(const ConvOperands& operands, IndexRange tasks) const override {
    ConvArgs args = args_;
    args.x = operands.x;
    args.out = operands.out;
    args.epilogue.residual.data = operands.residual;
    const int64_t width = args_.geometry.width.out_size;
    for (int64_t task = tasks.begin; task < tasks.end; ++task) {
      const int64_t row = task / parts() * width;
      const int64_t column = task % parts() * kPart;
      const IndexRange pixels{row + column, row + std::min(column + kPart, width)};
      if (operands.row_scale == nullptr) {
        conv(args, pixels);
      } else {
        run_scaled(args, operands.row_scale, pixels);
      }
    }
  }

 private:
  static void run_scaled(ConvArgs args, const float* row_scale, IndexRange pixels) {
    std::vector<float> multiplier(args.geometry.out_channels);
    const float* channel_scale = args.epilogue.multiplier;
    args.epilogue.multiplier = multiplier.data();
    for (int64_t p = pixels.begin; p < pixels.end; ++p) {
      for (size_t c = 0; c < multiplier.size(); ++c) multiplier[c] = row_scale[p] * channel_scale[c];
      conv(args, {p, p + 1});
    }
  }

  // A row of the output is cut into parts, because a linear layer is a single long row.
  static constexpr int64_t kPart = 16;
  int64_t parts() const { return (args_.geometry.width.out_size + kPart - 1) / kPart; }

  std::shared_ptr<const PackedConv> owner_;
  std::vector<float> multiplier_;
  std::vector<float> bias_;
  ConvArgs args_;
};

class ReferenceWeight final : public PackedConv {
 public:
  ReferenceWeight(const ConvSpec& spec, const ConvWeight& weight)
      : spec_(spec),
        arranged_(spec.out_channels * (spec.in_channels / spec.groups) * spec.height.kernel * spec.width.kernel) {
    arrange_conv_weight(geometry_of(spec, 0, {}, {}), weight, {0, spec.out_channels}, arranged_.data());
  }

  int64_t bytes() const override { return static_cast<int64_t>(arranged_.size()); }
  const char* kernel() const override { return "reference"; }
  Border input_border(const ImageLayout& /*in*/, const ImageLayout& /*out*/) const override { return {}; }
  std::shared_ptr<const ConvPlan> plan(const ConvProblem& problem) const override {
    return std::make_shared<ReferencePlan>(spec_, arranged_.data(), shared_from_this(), problem);
  }

 private:
  ConvSpec spec_;
  std::vector<int8_t> arranged_;
};

}  // namespace

std::shared_ptr<const PackedConv> pack_conv(const ConvSpec& spec, const ConvWeight& weight) {
  return std::make_shared<ReferenceWeight>(spec, weight);
}

}  // namespace torchquant::kernels::reference
