// The kernels of kernels/relu_fake_quantize.h over vectors of 16 lanes, written once for every vector instruction set:
// V is the Vector of vector_avx2.h or vector_avx512.h, Bits turns its masks into words and back. Included by
// relu_fake_quantize_avx2.cpp and relu_fake_quantize_avx512.cpp.
#pragma once

#include "kernels/cpu/fake_quantize_vector.h"
#include "kernels/relu_fake_quantize.h"

namespace torchquant::kernels {

template <typename V, typename Bits>
struct ReluFakeQuantizeVector {
  static_assert(kLanes == kPassesPerWord);
  using Float = typename V::Float;
  using Steps = FakeQuantizeVector<V>;

  struct Result {
    Float value;
    uint16_t passes;
  };

  // Lanes past the end hold x = 0, which does not pass.
  TQ_HOST_DEVICE static Result step(Float x, typename Steps::VectorQParams p, typename Steps::VectorRange range) {
    const Float code = Steps::unclamped_code(x, p);
    const uint16_t inside = Bits::word(V::between(code, range.quant_min, range.quant_max));
    const uint16_t cut = Bits::word(V::between(x, V::set(-__builtin_inff()), V::set(0.0f)));
    return {Steps::dequantize_value(Steps::saturate(code, range), p), static_cast<uint16_t>(inside & ~cut)};
  }

  TQ_KERNEL static void forward(const void* x, void* y, uint16_t* passes, int64_t n, FloatType type, QParams p,
                                QRange range) {
    with_float_type(type, [&](auto element) {
      using T = decltype(element);
      const T* in = static_cast<const T*>(x);
      T* out = static_cast<T*>(y);
      const auto params = typename Steps::RunParams(p).p;
      const auto limits = Steps::make_range(range);
      map_vectors<V::kBatch>(
          n, [=](int64_t i, auto lanes) { return step(V::load(in + i, lanes), params, limits); },
          [=](int64_t i, Result result, auto lanes) {
            V::store(out + i, result.value, lanes);
            passes[i / kPassesPerWord] = result.passes;
          });
    });
  }

  TQ_KERNEL static void backward(const void* grad, const uint16_t* passes, void* grad_x, int64_t n, FloatType type) {
    with_float_type(type, [&](auto element) {
      using T = decltype(element);
      const T* in = static_cast<const T*>(grad);
      T* out = static_cast<T*>(grad_x);
      map_vectors<V::kBatch>(
          n,
          [=](int64_t i, auto lanes) {
            return V::select(Bits::mask(passes[i / kPassesPerWord]), V::load(in + i, lanes), V::set(0.0f));
          },
          [=](int64_t i, Float v, auto lanes) { V::store(out + i, v, lanes); });
    });
  }

  static constexpr ReluFakeQuantizeKernels table() { return {.forward = forward, .backward = backward}; }
};

}  // namespace torchquant::kernels
