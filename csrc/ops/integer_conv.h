// Runs the integer convolution engine (kernels/integer_conv.h) for ops: weights packed once and kept with their tensor,
// layers planned once per shape, tasks shared among Torch's threads. Called by quantized_conv and quantized_linear.
#pragma once

#include <ATen/core/Tensor.h>

#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "kernels/integer_conv.h"
#include "ops/weight_cache.h"

namespace torchquant::ops {

// Packed weights with the plans made for them. Threads may share one.
class PlannedConv final : public CachedWeight {
 public:
  explicit PlannedConv(std::shared_ptr<const kernels::PackedConv> packed) : packed_(std::move(packed)) {}

  const char* kernel() const override { return packed_->kernel(); }
  int64_t bytes() const override { return packed_->bytes(); }
  const std::shared_ptr<const kernels::PackedConv>& packed() const { return packed_; }

  // The plan for this problem, whose per-channel values have `channels` elements; made, after `check` has seen the
  // problem for the first time, if it is none of the last few.
  template <typename Check>
  std::shared_ptr<const kernels::ConvPlan> plan(const kernels::ConvProblem& problem, int64_t channels,
                                                Check&& check) const {
    if (auto found = find(problem, channels)) return found;
    check();
    return make(problem, channels);
  }

 private:
  struct Planned;
  std::shared_ptr<const kernels::ConvPlan> find(const kernels::ConvProblem& problem, int64_t channels) const;
  std::shared_ptr<const kernels::ConvPlan> make(const kernels::ConvProblem& problem, int64_t channels) const;

  std::shared_ptr<const kernels::PackedConv> packed_;
  mutable std::mutex mutex_;
  mutable std::vector<std::shared_ptr<const Planned>> plans_;  // the latest last
};

// The int8 or packed 4-bit weight of a convolution as the op holds it (a linear weight is that of a 1x1 convolution),
// packed for the selected instruction set.
std::shared_ptr<const PlannedConv> packed_conv(const at::Tensor& weight, const kernels::ConvSpec& spec, int64_t bits,
                                               int64_t quant_min);

// The arguments of quantized_conv that say which inputs an output reads; one or two spatial dimensions.
struct ConvParams {
  at::IntArrayRef kernel_size;
  at::IntArrayRef stride;
  at::IntArrayRef padding;
  at::IntArrayRef dilation;
  int64_t groups;
  bool transposed;
  at::IntArrayRef output_padding;
};
// A missing height is one row that the kernel covers exactly.
TQ_API kernels::ConvSpec conv_spec(int64_t in_channels, int64_t out_channels, const ConvParams& p);

// Threads that a plan made here should count on: 1 inside a parallel region.
int plan_threads();

// Runs all tasks of a plan. A thread that is done takes the next task, so one that was interrupted holds nobody up.
void run_plan(const kernels::ConvPlan& plan, const kernels::ConvOperands& operands);

// The layout of a dense image once a border has been put around it.
kernels::ImageLayout bordered_layout(const kernels::ImageLayout& dense, const kernels::Border& border);

// The plan for a problem whose input is dense: the caller gives the input the border that the plan asks for, of the
// layout that `problem.in` becomes.
template <typename Check>
std::shared_ptr<const kernels::ConvPlan> plan_bordered(const PlannedConv& packed, kernels::ConvProblem problem,
                                                       int64_t channels, Check&& check) {
  problem.in = bordered_layout(problem.in, packed.packed()->input_border(problem.in, problem.out));
  return packed.plan(problem, channels, check);
}

// Codes with the border that a plan asks for: `x` itself if it asks for none, else a copy.
class BorderedInput {
 public:
  // `x` is dense and NHWC in memory. The layout is what the plan must be made for; ask for it with no border first.
  BorderedInput(const at::Tensor& x, const kernels::ImageLayout& dense, int64_t batch, const kernels::Border& border,
                int64_t zero_point);
  const void* data() const { return data_; }

 private:
  at::Tensor copy_;
  const void* data_;
};

}  // namespace torchquant::ops
