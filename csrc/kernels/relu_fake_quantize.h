// A fake-quantize right behind a ReLU, in training: notes in one bit per element where the gradient passes both, so
// that nothing needs to keep what the ReLU returned. Called by csrc/ops/relu_passes.cpp.
#pragma once

#include <cstdint>

#include "kernels/fake_quantize.h"

namespace torchquant::kernels {

// Elements whose bits share a word of `passes`: element i has bit i % 16 of passes[i / 16].
inline constexpr int64_t kPassesPerWord = 16;

struct ReluFakeQuantizeKernels {
  // y[i] = fake_quantize(x[i]) of n contiguous elements, and bit i = relu_ste_mask(x[i]); bits past the end are 0.
  void (*forward)(const void* x, void* y, uint16_t* passes, int64_t n, FloatType type, QParams p, QRange range);
  // grad_x[i] = grad[i] where bit i is set, else 0.
  void (*backward)(const void* grad, const uint16_t* passes, void* grad_x, int64_t n, FloatType type);
};

// The kernels of an instruction set, which must be among available_isas().
const ReluFakeQuantizeKernels& relu_fake_quantize_kernels(Isa isa);

}  // namespace torchquant::kernels
