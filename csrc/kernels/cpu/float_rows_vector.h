// The kernels of kernels/float_rows.h over vectors of 16 lanes, written once for every vector instruction set (V is the
// Vector of vector_avx2.h or vector_avx512.h). Included by float_rows_avx2.cpp and float_rows_avx512.cpp.
#pragma once

#include <cmath>

#include "kernels/cpu/lane_sums.h"
#include "kernels/float_rows.h"

namespace torchquant::kernels {

template <typename V>
class FloatRowsVector {
 public:
  TQ_KERNEL static void layer_norm(const LayerNormArgs& args, IndexRange rows) {
    for (int64_t row = rows.begin; row < rows.end; ++row) {
      normalize(args, args.x + row * args.columns, args.out + row * args.columns);
    }
  }

  TQ_KERNEL static void add(const AddFloatsArgs& args, IndexRange elements) {
    const float* a = args.a + elements.begin;
    const float* b = args.b + elements.begin;
    float* out = args.out + elements.begin;
    for_each_vector(elements.end - elements.begin, [&](int64_t i, auto lanes) {
      V::store(out + i, V::add(V::load(a + i, lanes), V::load(b + i, lanes)), lanes);
    });
  }

 private:
  using Float = typename V::Float;

  TQ_HOST_DEVICE static float fold(Float sums) {
    alignas(64) float lanes[kLanes];
    V::store(lanes, sums, AllLanes{});
    return fold_lanes(lanes);
  }

  // Zero in the lanes beyond the last.
  TQ_HOST_DEVICE static Float only(Float v, AllLanes) { return v; }
  TQ_HOST_DEVICE static Float only(Float v, FirstLanes lanes) {
    float values[kLanes];
    V::store(values, v, AllLanes{});
    return V::load(values, lanes);
  }

  TQ_HOST_DEVICE static void normalize(const LayerNormArgs& args, const float* x, float* out) {
    const auto n = static_cast<float>(args.columns);
    Float sums = V::set(0.0f);
    for_each_vector(args.columns, [&](int64_t i, auto lanes) { sums = V::add(sums, V::load(x + i, lanes)); });
    const float row_mean = fold(sums) / n;
    const Float mean = V::set(row_mean);
    Float squares = V::set(0.0f);
    for_each_vector(args.columns, [&](int64_t i, auto lanes) {
      const Float centred = only(V::sub(V::load(x + i, lanes), mean), lanes);
      squares = V::fma(centred, centred, squares);
    });
    const Float r = V::set(1.0f / std::sqrt(fold(squares) / n + args.eps));
    for_each_vector(args.columns, [&](int64_t i, auto lanes) {
      const Float weight = args.weight == nullptr ? V::set(1.0f) : V::load(args.weight + i, lanes);
      const Float bias = args.bias == nullptr ? V::set(0.0f) : V::load(args.bias + i, lanes);
      V::store(out + i, V::fma(V::mul(V::sub(V::load(x + i, lanes), mean), r), weight, bias), lanes);
    });
  }
};

}  // namespace torchquant::kernels
