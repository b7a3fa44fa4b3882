// The reference of kernels/relu_fake_quantize.h: its formulas, one value at a time.
#include <algorithm>

#include "kernels/cpu/float_type.h"
#include "kernels/relu_fake_quantize.h"
#include "numerics/float16.h"
#include "numerics/relu_gradient.h"

namespace torchquant::kernels::reference {
namespace {

void forward(const void* x, void* y, uint16_t* passes, int64_t n, FloatType type, QParams p, QRange range) {
  std::fill(passes, passes + (n + kPassesPerWord - 1) / kPassesPerWord, uint16_t{0});
  with_float_type(type, [&](auto element) {
    using T = decltype(element);
    for (int64_t i = 0; i < n; ++i) {
      const float value = numerics::to_float(static_cast<const T*>(x)[i]);
      static_cast<T*>(y)[i] = numerics::from_float<T>(numerics::fake_quantize_value(value, p, range));
      const unsigned bit = numerics::relu_ste_mask(value, p, range) ? 1u : 0u;
      passes[i / kPassesPerWord] = static_cast<uint16_t>(passes[i / kPassesPerWord] | bit << (i % kPassesPerWord));
    }
  });
}

void backward(const void* grad, const uint16_t* passes, void* grad_x, int64_t n, FloatType type) {
  with_float_type(type, [&](auto element) {
    using T = decltype(element);
    for (int64_t i = 0; i < n; ++i) {
      const bool passed = (passes[i / kPassesPerWord] >> (i % kPassesPerWord) & 1) != 0;
      const float g = numerics::to_float(static_cast<const T*>(grad)[i]);
      static_cast<T*>(grad_x)[i] = numerics::from_float<T>(passed ? g : 0.0f);
    }
  });
}

}  // namespace

extern const ReluFakeQuantizeKernels kReluFakeQuantizeKernels;
constinit const ReluFakeQuantizeKernels kReluFakeQuantizeKernels = {.forward = forward, .backward = backward};

}  // namespace torchquant::kernels::reference
