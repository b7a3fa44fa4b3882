// From an int32 accumulator to an output code: the second half of every fused integer op. Called by the kernels of
// kernels/quantized_*.h, one function per step of the contract, in the order in which the steps are applied.
#pragma once

#include <cmath>
#include <cstdint>

#include "numerics/activation.h"
#include "numerics/affine.h"
#include "numerics/macros.h"

namespace torchquant::numerics {

// v = fmaf(float(acc), m, b): the value in units of the output scale, bias included.
TQ_HOST_DEVICE float scale_accumulator(int32_t acc, float multiplier, float bias) {
  return fmaf(static_cast<float>(acc), multiplier, bias);
}

// v = fmaf(float(q - z), r, v) with r = s_res / s_y
TQ_HOST_DEVICE float add_residual(float v, int32_t q_minus_zero_point, float multiplier) {
  return fmaf(static_cast<float>(q_minus_zero_point), multiplier, v);
}

struct ActivationSpec {
  Activation kind;
  QRange clamp;  // kClamp only: bounds already divided by the output scale
  float output_scale;
  float inv_output_scale;  // 1 / output_scale, divided once in fp32
};

TQ_HOST_DEVICE ActivationSpec no_activation() { return {Activation::kNone, {0.0f, 0.0f}, 1.0f, 1.0f}; }

// Clamps act on v itself; every other activation sees the real value: act(v * s_y) * (1 / s_y).
TQ_HOST_DEVICE float activate(float v, const ActivationSpec& spec) {
  if (spec.kind == Activation::kNone) return v;
  if (spec.kind == Activation::kClamp) return saturate(v, spec.clamp);
  return activate_real(spec.kind, v * spec.output_scale) * spec.inv_output_scale;
}

// clamp(rhe(v) + z_y, quant_min, quant_max); NaN gives the zero point, as in quantize_value.
TQ_HOST_DEVICE float output_code(float v, float zero_point, QRange range) {
  const float code = round_half_even(v) + zero_point;
  return code != code ? zero_point : saturate(code, range);
}

}  // namespace torchquant::numerics
