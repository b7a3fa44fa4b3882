// The training kernels over vectors of 16 lanes, written once for every vector instruction set: V is the Vector of
// vector_avx2.h or vector_avx512.h. Included by fake_quantize_avx2.cpp and fake_quantize_avx512.cpp, each of which
// instantiates it with its own V, so no code is shared between files compiled with different flags.
//
// Every step repeats a formula of numerics/affine.h in the same order of operations, so the bits are the reference's.
#pragma once

#include <cstdint>

#include "kernels/cpu/float_type.h"
#include "kernels/cpu/lanes.h"
#include "kernels/fake_quantize.h"
#include "numerics/affine.h"

namespace torchquant::kernels {

template <typename V>
struct FakeQuantizeVector {
  using Float = typename V::Float;
  using Mask = typename V::Mask;

  struct VectorQParams {
    Float scale, inv_scale, zero_point;
  };
  struct VectorRange {
    Float quant_min, quant_max;
  };
  struct Gradients {
    Float x, scale, zero_point;
  };

  // Parameters of a run: the same for every step, set before the loop.
  struct RunParams {
    VectorQParams p;
    TQ_HOST_DEVICE explicit RunParams(QParams q) : p{V::set(q.scale), V::set(q.inv_scale), V::set(q.zero_point)} {}
    template <typename Lanes>
    TQ_HOST_DEVICE VectorQParams at(int64_t, Lanes) const {
      return p;
    }
  };
  // Parameters of an *_each kernel: loaded at every step.
  struct EachParams {
    QParamArrays p;
    TQ_HOST_DEVICE explicit EachParams(QParamArrays q) : p(q) {}
    template <typename Lanes>
    TQ_HOST_DEVICE VectorQParams at(int64_t i, Lanes lanes) const {
      return {V::load(p.scale + i, lanes), V::load(p.inv_scale + i, lanes), V::load(p.zero_point + i, lanes)};
    }
  };

  TQ_HOST_DEVICE static VectorRange make_range(QRange range) {
    return {V::set(range.quant_min), V::set(range.quant_max)};
  }

  // ---- numerics/affine.h on 16 lanes ----
  // NaN stays NaN: min and max give their second operand where either is NaN.
  TQ_HOST_DEVICE static Float saturate(Float v, VectorRange range) {
    return V::min(range.quant_max, V::max(range.quant_min, v));
  }
  TQ_HOST_DEVICE static Float unclamped_code(Float x, VectorQParams p) {
    return V::add(V::round_half_even(V::mul(x, p.inv_scale)), p.zero_point);
  }
  TQ_HOST_DEVICE static Float dequantize_value(Float q, VectorQParams p) {
    return V::mul(V::sub(q, p.zero_point), p.scale);
  }
  TQ_HOST_DEVICE static Float fake_quantize_value(Float x, VectorQParams p, VectorRange range) {
    return dequantize_value(saturate(unclamped_code(x, p), range), p);
  }
  TQ_HOST_DEVICE static Float quantize_value(Float x, VectorQParams p, VectorRange range) {
    const Float v = unclamped_code(x, p);
    return V::select(V::is_nan(v), p.zero_point, saturate(v, range));
  }
  TQ_HOST_DEVICE static Float ste_grad(Float grad, Float x, VectorQParams p, VectorRange range) {
    return V::select(V::between(unclamped_code(x, p), range.quant_min, range.quant_max), grad, V::set(0.0f));
  }
  TQ_HOST_DEVICE static Gradients gradients(Float grad, Float x, VectorQParams p, VectorRange range) {
    const Float zero = V::set(0.0f);
    const Float t = V::mul(x, p.inv_scale);
    const Float r = V::round_half_even(t);
    const Float v = V::add(r, p.zero_point);
    const Mask inside = V::between(v, range.quant_min, range.quant_max);
    const Float outside = V::sub(saturate(v, range), p.zero_point);
    return {V::select(inside, grad, zero), V::mul(grad, V::select(inside, V::sub(r, t), outside)),
            V::select(inside, zero, V::negate(V::mul(grad, p.scale)))};
  }

  // ---- kernels ----
  template <typename Params, typename Source>
  TQ_KERNEL static void fake_quantize(const void* x, void* y, int64_t n, FloatType type, Source source, QRange range) {
    with_float_type(type, [&](auto element) {
      using T = decltype(element);
      const T* in = static_cast<const T*>(x);
      T* out = static_cast<T*>(y);
      const Params params(source);
      const VectorRange limits = make_range(range);
      map_vectors<V::kBatch>(
          n,
          [=](int64_t i, auto lanes) {
            return fake_quantize_value(V::load(in + i, lanes), params.at(i, lanes), limits);
          },
          [=](int64_t i, Float v, auto lanes) { V::store(out + i, v, lanes); });
    });
  }

  template <typename Params, typename Source>
  TQ_KERNEL static void backward(const void* grad, const void* x, void* grad_x, int64_t n, FloatType type,
                                 Source source, QRange range) {
    with_float_type(type, [&](auto element) {
      using T = decltype(element);
      const T* grad_in = static_cast<const T*>(grad);
      const T* in = static_cast<const T*>(x);
      T* out = static_cast<T*>(grad_x);
      const Params params(source);
      const VectorRange limits = make_range(range);
      map_vectors<V::kBatch>(
          n,
          [=](int64_t i, auto lanes) {
            return ste_grad(V::load(grad_in + i, lanes), V::load(in + i, lanes), params.at(i, lanes), limits);
          },
          [=](int64_t i, Float v, auto lanes) { V::store(out + i, v, lanes); });
    });
  }

  TQ_KERNEL static QParamGrads learnable_backward_run(const void* grad, const void* x, void* grad_x, int64_t n,
                                                      FloatType type, QParams p, QRange range) {
    QParamGrads sums{0.0, 0.0};
    with_float_type(type, [&](auto element) {
      using T = decltype(element);
      for (int64_t begin = 0; begin < n; begin += kReductionBlock) {
        const int64_t size = n - begin < kReductionBlock ? n - begin : kReductionBlock;
        add_block(static_cast<const T*>(grad) + begin, static_cast<const T*>(x) + begin,
                  static_cast<T*>(grad_x) + begin, size, p, range, &sums);
      }
    });
    return sums;
  }

  template <typename T>
  TQ_HOST_DEVICE static void add_block(const T* grad, const T* x, T* grad_x, int64_t n, QParams p, QRange range,
                                       QParamGrads* sums) {
    static_assert(kLanes == kReductionLanes);
    const VectorQParams params = RunParams(p).p;
    const VectorRange limits = make_range(range);
    Float scale = V::set(0.0f);
    Float zero_point = V::set(0.0f);
    const auto accumulate = [&](int64_t i, auto lanes) {
      const Gradients g = gradients(V::load(grad + i, lanes), V::load(x + i, lanes), params, limits);
      // Lanes past the end hold x = 0 and grad = 0, whose gradients are 0: a valid scale has a finite reciprocal, and
      // the zero point lies inside the range.
      scale = V::add(scale, g.scale);
      zero_point = V::add(zero_point, g.zero_point);
      return g.x;
    };
    map_vectors<V::kBatch>(n, accumulate, [=](int64_t i, Float v, auto lanes) { V::store(grad_x + i, v, lanes); });
    float lanes[2][kLanes];
    V::store(lanes[0], scale, AllLanes{});
    V::store(lanes[1], zero_point, AllLanes{});
    for (int lane = 0; lane < kLanes; ++lane) {
      sums->scale += static_cast<double>(lanes[0][lane]);
      sums->zero_point += static_cast<double>(lanes[1][lane]);
    }
  }

  TQ_KERNEL static void learnable_backward_each(const void* grad, const void* x, void* grad_x, int64_t n,
                                                FloatType type, QParamArrays p, QRange range, double* scale_grad,
                                                double* zero_point_grad) {
    with_float_type(type, [&](auto element) {
      using T = decltype(element);
      const T* grad_in = static_cast<const T*>(grad);
      const T* in = static_cast<const T*>(x);
      T* out = static_cast<T*>(grad_x);
      const EachParams params(p);
      const VectorRange limits = make_range(range);
      for_each_vector(n, [=](int64_t i, auto lanes) {
        const Float g_out = V::load(grad_in + i, lanes);
        const Gradients g = gradients(g_out, V::load(in + i, lanes), params.at(i, lanes), limits);
        V::store(out + i, g.x, lanes);
        V::add_to(scale_grad + i, g.scale, lanes);
        V::add_to(zero_point_grad + i, g.zero_point, lanes);
      });
    });
  }

  template <typename Params, typename Source>
  TQ_KERNEL static void quantize(const void* x, void* q, int64_t n, FloatType type, Source source, QRange range) {
    with_float_type(type, [&](auto element) {
      using T = decltype(element);
      const T* in = static_cast<const T*>(x);
      uint8_t* out = static_cast<uint8_t*>(q);
      const Params params(source);
      const VectorRange limits = make_range(range);
      for_each_vector(n, [=](int64_t i, auto lanes) {
        V::store_codes(out + i, quantize_value(V::load(in + i, lanes), params.at(i, lanes), limits), lanes);
      });
    });
  }

  template <typename Code, typename T, typename Params>
  TQ_HOST_DEVICE static void dequantize_codes(const Code* q, T* y, int64_t n, Params params) {
    for_each_vector(n, [=](int64_t i, auto lanes) {
      V::store(y + i, dequantize_value(V::load_codes(q + i, lanes), params.at(i, lanes)), lanes);
    });
  }

  template <typename Params, typename Source>
  TQ_KERNEL static void dequantize(const void* q, void* y, int64_t n, bool q_signed, FloatType type, Source source) {
    with_float_type(type, [&](auto element) {
      using T = decltype(element);
      if (q_signed) {
        dequantize_codes(static_cast<const int8_t*>(q), static_cast<T*>(y), n, Params(source));
      } else {
        dequantize_codes(static_cast<const uint8_t*>(q), static_cast<T*>(y), n, Params(source));
      }
    });
  }

  TQ_KERNEL static MinMax min_max_run(const void* x, int64_t n, FloatType type) {
    const Float highest = V::set(__builtin_inff());
    const Float lowest = V::set(-__builtin_inff());
    Float min_val = highest;
    Float max_val = lowest;
    int64_t finite_count = 0;
    with_float_type(type, [&](auto element) {
      const auto* in = static_cast<const decltype(element)*>(x);
      for_each_vector(n, [&](int64_t i, auto lanes) {
        const Float v = V::add(V::load(in + i, lanes), V::set(0.0f));  // turns a negative zero into zero
        const Mask finite = V::both(V::is_finite(v), V::mask(lanes));
        finite_count += V::count(finite);
        min_val = V::min(V::select(finite, v, highest), min_val);
        max_val = V::max(V::select(finite, v, lowest), max_val);
      });
    });
    float lanes[2][kLanes];
    V::store(lanes[0], min_val, AllLanes{});
    V::store(lanes[1], max_val, AllLanes{});
    MinMax result{lanes[0][0], lanes[1][0], n - finite_count};
    for (int lane = 1; lane < kLanes; ++lane) {
      if (lanes[0][lane] < result.min_val) result.min_val = lanes[0][lane];
      if (lanes[1][lane] > result.max_val) result.max_val = lanes[1][lane];
    }
    return result;
  }

  TQ_KERNEL static int64_t min_max_each(const void* x, int64_t n, FloatType type, float* min_val, float* max_val) {
    const Float highest = V::set(__builtin_inff());
    const Float lowest = V::set(-__builtin_inff());
    int64_t finite_count = 0;
    with_float_type(type, [&](auto element) {
      const auto* in = static_cast<const decltype(element)*>(x);
      for_each_vector(n, [&](int64_t i, auto lanes) {
        const Float v = V::add(V::load(in + i, lanes), V::set(0.0f));
        const Mask finite = V::both(V::is_finite(v), V::mask(lanes));
        finite_count += V::count(finite);
        V::store(min_val + i, V::min(V::select(finite, v, highest), V::load(min_val + i, lanes)), lanes);
        V::store(max_val + i, V::max(V::select(finite, v, lowest), V::load(max_val + i, lanes)), lanes);
      });
    });
    return n - finite_count;
  }

  static constexpr FakeQuantizeKernels table() {
    return {
        .fake_quantize_run = fake_quantize<RunParams, QParams>,
        .fake_quantize_each = fake_quantize<EachParams, QParamArrays>,
        .backward_run = backward<RunParams, QParams>,
        .backward_each = backward<EachParams, QParamArrays>,
        .learnable_backward_run = learnable_backward_run,
        .learnable_backward_each = learnable_backward_each,
        .quantize_run = quantize<RunParams, QParams>,
        .quantize_each = quantize<EachParams, QParamArrays>,
        .dequantize_run = dequantize<RunParams, QParams>,
        .dequantize_each = dequantize<EachParams, QParamArrays>,
        .min_max_run = min_max_run,
        .min_max_each = min_max_each,
    };
  }
};

}  // namespace torchquant::kernels
