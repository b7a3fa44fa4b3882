// One call of each training kernel on given inputs, with outputs that tests can compare bit for bit. Used by the
// agreement test and the benchmark, so that what is timed is what is tested.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "kernels/fake_quantize.h"
#include "support/fake_quantize_cases.h"

namespace torchquant::test {

using kernels::FloatType;

inline int64_t size_of(FloatType type) { return type == FloatType::kFloat32 ? 4 : 2; }

inline const char* type_name(FloatType type) {
  return type == FloatType::kFloat32 ? "float32" : type == FloatType::kBFloat16 ? "bfloat16" : "float16";
}

// `values` rounded to `type`, as bytes.
inline std::vector<uint8_t> pack(const std::vector<float>& values, FloatType type) {
  std::vector<uint8_t> bytes(values.size() * size_of(type));
  for (size_t i = 0; i < values.size(); ++i) {
    if (type == FloatType::kFloat32) memcpy(&bytes[4 * i], &values[i], 4);
    const uint16_t half = type == FloatType::kFloat16 ? numerics::from_float<numerics::Float16>(values[i]).bits
                                                      : numerics::from_float<numerics::BFloat16>(values[i]).bits;
    if (type != FloatType::kFloat32) memcpy(&bytes[2 * i], &half, 2);
  }
  return bytes;
}

struct KernelInputs {
  FloatType type;
  FakeQuantizeCase params;
  int64_t n;
  std::vector<uint8_t> x, grad;
  std::vector<uint8_t> codes;
  std::vector<float> scale, inv_scale, zero_point;  // of the *_each kernels

  kernels::QParamArrays arrays() const { return {scale.data(), inv_scale.data(), zero_point.data()}; }
};

// Gives about one element in 64 any bit pattern of its type, signalling NaN included, which no conversion would leave.
inline void scatter_bit_patterns(std::vector<uint8_t>* elements, FloatType type, Random* random) {
  const int64_t size = size_of(type);
  for (size_t at = 0; at < elements->size(); at += size) {
    const uint64_t bits = random->bits();
    if (random->integer(0, 63) == 0) memcpy(elements->data() + at, &bits, size);
  }
}

// Neighbouring elements of the *_each kernels get different parameters.
inline KernelInputs make_kernel_inputs(const FakeQuantizeCase& params, FloatType type, int64_t n, uint64_t seed) {
  KernelInputs inputs{type, params, n, {}, {}, {}, {}, {}, {}};
  inputs.x = pack(fake_quantize_values(params, n, seed), type);
  inputs.grad = pack(bell_values(n, 1.0f, seed + 1), type);
  Random random(seed + 2);
  scatter_bit_patterns(&inputs.x, type, &random);
  scatter_bit_patterns(&inputs.grad, type, &random);
  for (int64_t i = 0; i < n; ++i) {
    inputs.codes.push_back(static_cast<uint8_t>(random.bits()));
    const float scale = params.scale * random.uniform(0.5f, 1.0f);
    const float zero_point = params.zero_point + static_cast<float>(random.integer(-2, 2));
    const numerics::QParams p = numerics::make_qparams(scale, zero_point, params.range);
    inputs.scale.push_back(p.scale);
    inputs.inv_scale.push_back(p.inv_scale);
    inputs.zero_point.push_back(p.zero_point);
  }
  return inputs;
}

struct KernelOutputs {
  std::vector<uint8_t> elements;  // n elements of `element_size` bytes
  int64_t element_size;
  std::vector<float> floats;  // results beside the elements
  std::vector<double> sums;
  int64_t count = 0;
};

// Runs one kernel of the table; `elements` comes in large enough for n elements of the output.
struct KernelCall {
  const char* name;
  int64_t (*element_size)(FloatType);  // of the output, in bytes; 0 where there is no output by element
  int64_t (*traffic)(FloatType);       // bytes read and written for one element, for benchmarks
  void (*run)(const kernels::FakeQuantizeKernels& table, const KernelInputs& in, KernelOutputs* out);
};

inline int64_t one_byte(FloatType) { return 1; }
inline int64_t no_bytes(FloatType) { return 0; }

inline std::vector<KernelCall> kernel_calls() {
  using Table = kernels::FakeQuantizeKernels;
  using In = KernelInputs;
  using Out = KernelOutputs;
  return {
      {"fake_quantize_run", size_of, [](FloatType type) { return 2 * size_of(type); },
       [](const Table& k, const In& in, Out* out) {
         k.fake_quantize_run(in.x.data(), out->elements.data(), in.n, in.type, in.params.qparams(), in.params.range);
       }},
      {"fake_quantize_run_in_place", size_of, [](FloatType type) { return 2 * size_of(type); },
       [](const Table& k, const In& in, Out* out) {
         if (in.n > 0) memcpy(out->elements.data(), in.x.data(), in.x.size());
         void* y = out->elements.data();
         k.fake_quantize_run(y, y, in.n, in.type, in.params.qparams(), in.params.range);
       }},
      {"fake_quantize_each", size_of, [](FloatType type) { return 2 * size_of(type) + 12; },
       [](const Table& k, const In& in, Out* out) {
         k.fake_quantize_each(in.x.data(), out->elements.data(), in.n, in.type, in.arrays(), in.params.range);
       }},
      {"backward_run", size_of, [](FloatType type) { return 3 * size_of(type); },
       [](const Table& k, const In& in, Out* out) {
         k.backward_run(in.grad.data(), in.x.data(), out->elements.data(), in.n, in.type, in.params.qparams(),
                        in.params.range);
       }},
      {"backward_each", size_of, [](FloatType type) { return 3 * size_of(type) + 12; },
       [](const Table& k, const In& in, Out* out) {
         k.backward_each(in.grad.data(), in.x.data(), out->elements.data(), in.n, in.type, in.arrays(),
                         in.params.range);
       }},
      {"learnable_backward_run", size_of, [](FloatType type) { return 3 * size_of(type); },
       [](const Table& k, const In& in, Out* out) {
         const kernels::QParamGrads sums = k.learnable_backward_run(
             in.grad.data(), in.x.data(), out->elements.data(), in.n, in.type, in.params.qparams(), in.params.range);
         out->sums = {sums.scale, sums.zero_point};
       }},
      {"learnable_backward_each", size_of, [](FloatType type) { return 3 * size_of(type) + 12 + 32; },
       [](const Table& k, const In& in, Out* out) {
         out->sums.resize(2 * in.n, 0.125);  // added to, so not zero
         k.learnable_backward_each(in.grad.data(), in.x.data(), out->elements.data(), in.n, in.type, in.arrays(),
                                   in.params.range, out->sums.data(), out->sums.data() + in.n);
       }},
      {"quantize_run", one_byte, [](FloatType type) { return size_of(type) + 1; },
       [](const Table& k, const In& in, Out* out) {
         k.quantize_run(in.x.data(), out->elements.data(), in.n, in.type, in.params.qparams(), in.params.range);
       }},
      {"quantize_each", one_byte, [](FloatType type) { return size_of(type) + 13; },
       [](const Table& k, const In& in, Out* out) {
         k.quantize_each(in.x.data(), out->elements.data(), in.n, in.type, in.arrays(), in.params.range);
       }},
      {"dequantize_run_signed", size_of, [](FloatType type) { return size_of(type) + 1; },
       [](const Table& k, const In& in, Out* out) {
         k.dequantize_run(in.codes.data(), out->elements.data(), in.n, true, in.type, in.params.qparams());
       }},
      {"dequantize_run_unsigned", size_of, [](FloatType type) { return size_of(type) + 1; },
       [](const Table& k, const In& in, Out* out) {
         k.dequantize_run(in.codes.data(), out->elements.data(), in.n, false, in.type, in.params.qparams());
       }},
      {"dequantize_each_signed", size_of, [](FloatType type) { return size_of(type) + 13; },
       [](const Table& k, const In& in, Out* out) {
         k.dequantize_each(in.codes.data(), out->elements.data(), in.n, true, in.type, in.arrays());
       }},
      {"dequantize_each_unsigned", size_of, [](FloatType type) { return size_of(type) + 13; },
       [](const Table& k, const In& in, Out* out) {
         k.dequantize_each(in.codes.data(), out->elements.data(), in.n, false, in.type, in.arrays());
       }},
      {"min_max_run", no_bytes, [](FloatType type) { return size_of(type); },
       [](const Table& k, const In& in, Out* out) {
         const kernels::MinMax found = k.min_max_run(in.x.data(), in.n, in.type);
         out->floats = {found.min_val, found.max_val};
         out->count = found.nonfinite;
       }},
      {"min_max_each", no_bytes, [](FloatType type) { return size_of(type) + 16; },
       [](const Table& k, const In& in, Out* out) {
         out->floats.resize(2 * in.n, 0.25f);  // a range that some values widen and some do not
         out->count = k.min_max_each(in.x.data(), in.n, in.type, out->floats.data(), out->floats.data() + in.n);
       }},
  };
}

}  // namespace torchquant::test
