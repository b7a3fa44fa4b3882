// The autograd node of the ops that observe and fake-quantize in one call: straight-through gradient of x alone.
#pragma once

#include <ATen/TensorSubclassLikeUtils.h>
#include <torch/csrc/autograd/custom_function.h>

#include <optional>
#include <utility>

#include "numerics/affine.h"
#include "numerics/stats.h"
#include "ops/ops.h"

namespace torchquant::ops {

// Whether every value of a range lies inside [quant_min, quant_max] as a code: rounding is monotonic, so its ends tell.
inline bool nothing_clipped(numerics::Range seen, numerics::QParams params, numerics::QRange range) {
  return numerics::ste_mask(seen.min_val, params, range) && numerics::ste_mask(seen.max_val, params, range);
}

class StraightThrough : public torch::autograd::Function<StraightThrough> {
 public:
  static constexpr bool is_traceable = true;  // by compiled autograd

  struct Codes {
    std::optional<int64_t> axis;
    int64_t quant_min;
    int64_t quant_max;
  };
  struct Forward {
    at::Tensor output;
    at::Tensor scale;  // and zero_point: nothing may overwrite them before the backward
    at::Tensor zero_point;
  };

  // Called by a CPU kernel that has seen all of x: whether no value was clipped. An op returns its output alone, so
  // this goes through the thread that the kernel and its node run in; where no kernel tells, the mask is computed.
  static void tell(bool nothing_was_clipped) { told_ = nothing_was_clipped; }

  template <typename Run>
  static at::Tensor forward(torch::autograd::AutogradContext* ctx, const at::Tensor& x, const Codes& codes,
                            const Run& run) {
    told_ = false;
    Forward done = run();
    const bool unclipped = std::exchange(told_, false) && !at::isTensorSubclassLike(done.output);
    // x is alive anyway: backward computes the mask again instead of writing one here. As many tensors as fake_quantize
    // saves, which runs in place of this op where torch.utils.checkpoint repeats a forward.
    ctx->save_for_backward({x, done.scale, done.zero_point});
    ctx->saved_data["unclipped"] = unclipped;
    ctx->saved_data["axis"] = codes.axis;
    ctx->saved_data["quant_min"] = codes.quant_min;
    ctx->saved_data["quant_max"] = codes.quant_max;
    return done.output;
  }

  static torch::autograd::variable_list backward(torch::autograd::AutogradContext* ctx,
                                                 const torch::autograd::variable_list& grads) {
    const auto saved = ctx->get_saved_variables();
    torch::autograd::variable_list result(3);
    const bool unclipped = ctx->saved_data["unclipped"].toBool();
    // Of the op's layout, and with the op's error on a second derivative, whatever was clipped.
    if (unclipped && grads[0].strides() == saved[0].strides() && !at::GradMode::is_enabled()) {
      result[0] = grads[0];
      return result;
    }
    result[0] = fake_quantize_backward(grads[0], saved[0], saved[1], saved[2],
                                       ctx->saved_data["axis"].toOptional<int64_t>(), std::nullopt,
                                       ctx->saved_data["quant_min"].toInt(), ctx->saved_data["quant_max"].toInt());
    return result;
  }

 private:
  static inline thread_local bool told_ = false;
};

}  // namespace torchquant::ops
