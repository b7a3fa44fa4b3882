// Linear interpolation between neighbouring pixels: which two, and how much of each. The source positions are
// PyTorch's, step by step in fp32, so that a resized image of codes lies where the float one does. Called by the resize
// kernels and the op that prepares their taps.
#pragma once

#include <cmath>
#include <cstdint>

#include "numerics/macros.h"

namespace torchquant::numerics {

// One output position along one axis: the two inputs that it lies between, and their weights.
struct LinearTap {
  int64_t index[2];
  float weight[2];
};

// Inputs per output. `scale_factor` is the one that the user gave, 0 for none: PyTorch then divides the sizes.
TQ_HOST_DEVICE float resize_ratio(int64_t in_size, int64_t out_size, bool align_corners, double scale_factor) {
  if (align_corners) return out_size > 1 ? static_cast<float>(in_size - 1) / static_cast<float>(out_size - 1) : 0.0f;
  if (scale_factor > 0.0) return static_cast<float>(1.0 / scale_factor);
  return static_cast<float>(in_size) / static_cast<float>(out_size);
}

TQ_HOST_DEVICE LinearTap linear_tap(int64_t in_size, int64_t out_size, int64_t out, float ratio, bool align_corners) {
  if (in_size == out_size) return {{out, out}, {1.0f, 0.0f}};
  const float position =
      align_corners ? ratio * static_cast<float>(out) : fmaxf(ratio * (static_cast<float>(out) + 0.5f) - 0.5f, 0.0f);
  const float below = floorf(position);
  const int64_t first = below < static_cast<float>(in_size) ? static_cast<int64_t>(below) : in_size - 1;
  const int64_t last = in_size - 1;
  const int64_t lower = first < last ? first : last;
  const float weight = fminf(fmaxf(position - static_cast<float>(lower), 0.0f), 1.0f);
  return {{lower, lower < last ? lower + 1 : lower}, {1.0f - weight, weight}};
}

// fmaf(b, weight of b, a * weight of a)
TQ_HOST_DEVICE float interpolate(float a, float b, const LinearTap& tap) {
  return fmaf(b, tap.weight[1], a * tap.weight[0]);
}

}  // namespace torchquant::numerics
