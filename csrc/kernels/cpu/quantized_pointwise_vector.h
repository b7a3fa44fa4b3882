// add and mul over vectors of 16 lanes, written once for every vector instruction set (V: see codes_vector.h). Included
// by quantized_avx2.cpp and quantized_avx512.cpp.
#pragma once

#include "kernels/cpu/codes_vector.h"
#include "kernels/cpu/image_runs.h"
#include "kernels/cpu/quantized_reference.h"

namespace torchquant::kernels {

template <typename V>
struct QuantizedPointwiseVector {
  using Float = typename V::Float;

  // The two operands of a kernel, and how it combines their centred codes.
  template <typename Args>
  struct Operands {
    TQ_HOST_DEVICE explicit Operands(const Args& args)
        : a(static_cast<const uint8_t*>(args.a.data)),
          b(static_cast<const uint8_t*>(args.b.data)),
          a_codes(args.a.type, args.a.zero_point),
          b_codes(args.b.type, args.b.zero_point) {}
    const uint8_t* a;
    const uint8_t* b;
    CentredCodes<V> a_codes, b_codes;
  };

  struct Add : Operands<AddArgs> {
    TQ_HOST_DEVICE explicit Add(const AddArgs& args)
        : Operands<AddArgs>(args), a_multiplier(V::set(args.a_multiplier)), b_multiplier(V::set(args.b_multiplier)) {}
    TQ_HOST_DEVICE Float operator()(Float x, Float y) const { return V::fma(y, b_multiplier, V::mul(x, a_multiplier)); }
    Float a_multiplier, b_multiplier;
  };

  struct Mul : Operands<MulArgs> {
    TQ_HOST_DEVICE explicit Mul(const MulArgs& args) : Operands<MulArgs>(args), multiplier(V::set(args.multiplier)) {}
    // The contract multiplies integers, which have no negative zero.
    TQ_HOST_DEVICE Float operator()(Float x, Float y) const {
      return V::mul(V::add(V::mul(x, y), V::set(0.0f)), multiplier);
    }
    Float multiplier;
  };

  template <typename Combine, typename Store>
  TQ_HOST_DEVICE static void run(const Combine& combine, const Store& store, RunOffsets offsets, int64_t n) {
    const uint8_t* a = combine.a + offsets.a;
    const uint8_t* b = combine.b + offsets.b;
    for_each_vector(n, [&](int64_t i, auto lanes) {
      const Float x = combine.a_codes.values(a + i, lanes);
      const Float y = combine.b_codes.values(b + i, lanes);
      store(offsets.out + i, combine(x, y), lanes);
    });
  }

  template <typename Combine, typename Args, void (*kReference)(const Args&, IndexRange)>
  TQ_KERNEL static void dense(const Args& args, IndexRange elements) {
    if (!is_clamp_or_none(args.output)) return kReference(args, elements);
    const Combine combine(args);
    with_store<V>(args.output, args.out, [&](const auto& store) {
      run(combine, store, {elements.begin, elements.begin, elements.begin}, elements.end - elements.begin);
    });
  }

  template <typename Combine, typename Args, void (*kReference)(const Args&, const PointwiseImages&, IndexRange)>
  TQ_KERNEL static void image(const Args& args, const PointwiseImages& images, IndexRange rows) {
    if (!is_clamp_or_none(args.output)) return kReference(args, images, rows);
    const Combine combine(args);
    with_store<V>(args.output, args.out, [&](const auto& store) {
      for_each_run(images, rows, [&](RunOffsets offsets, int64_t n) { run(combine, store, offsets, n); });
    });
  }

  static consteval void fill(QuantizedKernels& table) {
    table.add = dense<Add, AddArgs, reference::add>;
    table.mul = dense<Mul, MulArgs, reference::mul>;
    table.add_image = image<Add, AddArgs, reference::add_image>;
    table.mul_image = image<Mul, MulArgs, reference::mul_image>;
  }
};

}  // namespace torchquant::kernels
