// The integer convolution engine: weights packed once for one instruction set, shapes planned once, then any number of
// runs. Called by csrc/ops/ for single convolutions and linear layers and for islands of them; a linear layer is a 1x1
// convolution over an image of `rows` x 1, a 1-d convolution one of height 1.
//
// Every result has the bits of the reference (numerics/requantize.h). The engine starts no threads: whoever runs a plan
// hands out its tasks.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>

#include "export.h"
#include "kernels/image.h"
#include "kernels/isa.h"
#include "kernels/quantized_conv.h"
#include "kernels/quantized_types.h"

namespace torchquant::kernels {

// One spatial dimension of a convolution, whatever the image.
struct ConvAxisSpec {
  int64_t kernel = 1;
  int64_t stride = 1;
  int64_t padding = 0;
  int64_t dilation = 1;
  int64_t output_padding = 0;  // transposed only
};

struct ConvSpec {
  int64_t in_channels;
  int64_t out_channels;
  int64_t groups = 1;
  bool transposed = false;
  ConvAxisSpec height{};
  ConvAxisSpec width{};
};

// What an axis of `in_size` positions becomes; below 1 if the kernel does not fit.
TQ_API int64_t conv_output_size(const ConvAxisSpec& axis, bool transposed, int64_t in_size);

// What must lie around each input image, in pixels of its own layout, holding the input's zero point; and how many
// bytes behind the last byte of the last row's border must be readable, whatever they hold.
struct Border : ImageBorder {
  int64_t tail_bytes = 0;
};

// A layer on images of fixed sizes. The pointers of `epilogue` are read while the plan is made; residual.data counts
// for nothing: `residual` says whether there is one.
struct ConvProblem {
  int64_t batch;
  ImageLayout in;
  ImageLayout out;
  std::optional<ImageLayout> residual;
  ElementType x_type;
  int32_t x_zero_point;
  Epilogue epilogue;
  int threads;  // how many will share the tasks
};

// Memory that will be read soon.
struct MemorySpan {
  const char* begin = nullptr;
  const char* end = nullptr;
};

class ConvPlan;

// Pointers to the first channel of the first pixel inside the border of the first image. `row_scale`, for the rows of a
// linear layer (one image of height 1) with float output, multiplies the multiplier of each pixel; null for none.
// `next` is the plan that will run after this one, whose weights can be fetched ahead; null for none.
struct ConvOperands {
  const void* x;
  void* out;
  const void* residual;
  const float* row_scale;
  const ConvPlan* next = nullptr;
};

// Immutable: threads may run one plan at once on images of their own. run() neither allocates (but for the reference's)
// nor blocks.
class TQ_API ConvPlan {
 public:
  virtual ~ConvPlan() = default;
  // Pixels that the kernel may read outside the image.
  virtual Border input_border() const = 0;
  // Independent parts of roughly equal cost, in the order in which they should be started.
  virtual int64_t tasks() const = 0;
  // The weights that `task` reads first; nothing for a task that is not there.
  virtual MemorySpan first_weights(int64_t) const { return {}; }
  void run(const void* x, void* out, const void* residual, IndexRange tasks) const {
    run(ConvOperands{x, out, residual, nullptr}, tasks);
  }
  virtual void run(const ConvOperands& operands, IndexRange tasks) const = 0;
};

// Weights in the layout of one instruction set, with their sums. Immutable: any number of plans share one.
class TQ_API PackedConv : public std::enable_shared_from_this<PackedConv> {
 public:
  virtual ~PackedConv() = default;
  virtual int64_t bytes() const = 0;
  virtual const char* kernel() const = 0;  // as receipts print it: "avx512_vnni"
  // What plans for these sizes ask for. Of `in`, height, width and pixel_pitch count, of `out` height and width.
  virtual Border input_border(const ImageLayout& in, const ImageLayout& out) const = 0;
  // plan_conv(): the plan keeps these weights alive.
  virtual std::shared_ptr<const ConvPlan> plan(const ConvProblem& problem) const = 0;
};

// `weight` is read during the call only. `isa` must be among available_isas(); one without an engine of its own packs
// for the reference.
TQ_API std::shared_ptr<const PackedConv> pack_conv(Isa isa, const ConvSpec& spec, const ConvWeight& weight);

// Layouts and weights must fit each other: the caller has checked them.
inline std::shared_ptr<const ConvPlan> plan_conv(const std::shared_ptr<const PackedConv>& packed,
                                                 const ConvProblem& problem) {
  return packed->plan(problem);
}

}  // namespace torchquant::kernels
