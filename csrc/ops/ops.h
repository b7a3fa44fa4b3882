// Typed C++ entry points of the torchquant ops. They call the dispatcher, so they are differentiable, traceable and run
// on the device of their arguments. Called by observers/, nn/, convert/ and C++ users; `ops/<name>.cpp` implements
// each.
//
// Common arguments
//   x            float32, bfloat16 or float16, any shape, any strides
//   scale        float32, finite and > 0; zero_point: float32 or integer, clamped to the range after rounding
//   axis, group_size
//                none, none: one parameter; axis: one for each index of that axis; axis and group_size: parameters have
//                x's shape with `axis` divided by group_size (per token: axis -1, group_size the last dimension)
//   quant_min, quant_max
//                inclusive codes, 2 to 8 bits, inside int8 or uint8
// A wrong argument raises c10::Error naming the op, the argument, what is allowed and what it got.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <optional>
#include <tuple>

#include "export.h"
#include "ops/observe.h"

namespace torchquant {

// (clamp(rhe(x / scale) + zero_point, quant_min, quant_max) - zero_point) * scale, in x's dtype and memory format.
// Gradients: straight through for x; LSQ / LSQ+ times grad_factor for scale and zero_point where they require one.
TQ_API at::Tensor fake_quantize(const at::Tensor& x, const at::Tensor& scale, const at::Tensor& zero_point,
                                std::optional<int64_t> axis, std::optional<int64_t> group_size, int64_t quant_min,
                                int64_t quant_max, double grad_factor = 1.0);

TQ_API at::Tensor fake_quantize_backward(const at::Tensor& grad, const at::Tensor& x, const at::Tensor& scale,
                                         const at::Tensor& zero_point, std::optional<int64_t> axis,
                                         std::optional<int64_t> group_size, int64_t quant_min, int64_t quant_max);

// Gradients of x, scale and zero_point.
TQ_API std::tuple<at::Tensor, at::Tensor, at::Tensor> fake_quantize_learnable_backward(
    const at::Tensor& grad, const at::Tensor& x, const at::Tensor& scale, const at::Tensor& zero_point,
    std::optional<int64_t> axis, std::optional<int64_t> group_size, int64_t quant_min, int64_t quant_max,
    double grad_factor = 1.0);

// int8 or uint8 codes. The range defaults to the whole of `dtype`.
TQ_API at::Tensor quantize(const at::Tensor& x, const at::Tensor& scale, const at::Tensor& zero_point,
                           std::optional<int64_t> axis, std::optional<int64_t> group_size, at::ScalarType dtype,
                           std::optional<int64_t> quant_min = std::nullopt,
                           std::optional<int64_t> quant_max = std::nullopt);

// (q - zero_point) * scale in `dtype`.
TQ_API at::Tensor dequantize(const at::Tensor& q, const at::Tensor& scale, const at::Tensor& zero_point,
                             std::optional<int64_t> axis, std::optional<int64_t> group_size,
                             at::ScalarType dtype = at::kFloat);

// (scale, zero_point) from the finite values of x: shapes [1], [x.size(axis)], or x's with `axis` divided.
TQ_API std::tuple<at::Tensor, at::Tensor> choose_qparams(const at::Tensor& x, std::optional<int64_t> axis,
                                                         std::optional<int64_t> group_size, bool symmetric,
                                                         int64_t quant_min, int64_t quant_max);

// (scale, zero_point) of observed ranges; min +inf and max -inf mean that nothing was seen and give scale 1.
TQ_API std::tuple<at::Tensor, at::Tensor> qparams_from_min_max(const at::Tensor& min_val, const at::Tensor& max_val,
                                                               bool symmetric, int64_t quant_min, int64_t quant_max);

// (scale, zero_point) of nearly the same range with scales that are powers of two: each scale rounded up, and of an
// affine range the zero point moved with its lower end.
TQ_API std::tuple<at::Tensor, at::Tensor> power_of_two_qparams(const at::Tensor& scale, const at::Tensor& zero_point,
                                                               bool symmetric, int64_t quant_min, int64_t quant_max);

// One training step's observe + choose + fake-quantize: moves min_val and max_val towards x's range by
// averaging_constant (the first batch sets them; 1 keeps this batch alone), writes scale and zero_point, counts the
// values of x that are not finite, and returns x fake-quantized with the new parameters. Straight-through gradient.
TQ_API at::Tensor fused_observe_fake_quantize(const at::Tensor& x, const at::Tensor& min_val, const at::Tensor& max_val,
                                              const at::Tensor& nonfinite_count, const at::Tensor& scale,
                                              const at::Tensor& zero_point, double averaging_constant,
                                              std::optional<int64_t> axis, bool symmetric, int64_t quant_min,
                                              int64_t quant_max);

// fake_quantize with one scale for the tensor that is given, and observe_moving_average, in one pass over x: a step of
// several processes, whose ranges are merged after the forward. Straight-through gradient.
TQ_API at::Tensor fake_quantize_and_observe(const at::Tensor& x, const at::Tensor& scale, const at::Tensor& zero_point,
                                            const at::Tensor& min_val, const at::Tensor& max_val,
                                            const at::Tensor& nonfinite_count, double averaging_constant,
                                            int64_t quant_min, int64_t quant_max);

// fake_quantize of x + noise * scale, for training; `noise` is float32 of x's shape, uniform in [-1/2, 1/2). Rounded,
// it is stochastic rounding: the expectation inside the range is x. Not rounded, it is pseudo-quantization noise
// clamped to the range. The gradient of x passes straight through inside the range; scale and zero_point have none.
TQ_API at::Tensor noisy_fake_quantize(const at::Tensor& x, const at::Tensor& noise, const at::Tensor& scale,
                                      const at::Tensor& zero_point, std::optional<int64_t> axis,
                                      std::optional<int64_t> group_size, int64_t quant_min, int64_t quant_max,
                                      bool round);

// PACT: fake_quantize per tensor whose scale follows `clip` (float32, as many elements as zero_point), the largest
// magnitude that a code stands for: scale = pact_scale(clip, ...). Gradients: of x inside the range, of clip from the
// values beyond it.
TQ_API at::Tensor pact_fake_quantize(const at::Tensor& x, const at::Tensor& clip, const at::Tensor& zero_point,
                                     int64_t quant_min, int64_t quant_max);

// scale = clip / max(quant_max - zero_point, zero_point - quant_min), and back. Neither carries a gradient.
TQ_API at::Tensor pact_scale(const at::Tensor& clip, const at::Tensor& zero_point, int64_t quant_min,
                             int64_t quant_max);
TQ_API at::Tensor pact_clip(const at::Tensor& scale, const at::Tensor& zero_point, int64_t quant_min,
                            int64_t quant_max);

}  // namespace torchquant
