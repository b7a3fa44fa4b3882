// quantize_row(): the largest value by a plain loop, which the compiler turns into vectors, then the codes by the
// quantizing kernel of the instruction set. Included only by quantize_rows_*.cpp, inside a namespace of the set's own.

// Magnitudes are compared as bits: that gives the same maximum, and compilers do not turn a maximum of floats into
// vectors.
TQ_HOST_DEVICE int32_t largest_finite_bits(const float* x, int64_t n) {
  int32_t largest = 0;
  for (int64_t i = 0; i < n; ++i) {
    const int32_t finite = numerics::finite_magnitude_bits(x[i]);
    largest = finite > largest ? finite : largest;
  }
  return largest;
}

// A zero point of 128 gives the codes of zero point 0, plus 128.
inline float quantize_row_codes(const FakeQuantizeKernels& kernels, const float* x, int64_t n, uint8_t* codes) {
  constexpr float kZeroPoint = kDynamicZeroPoint;
  constexpr QRange kCodes{numerics::kDynamicRange.quant_min + kZeroPoint,
                          numerics::kDynamicRange.quant_max + kZeroPoint};
  QParams qparams = numerics::dynamic_qparams(largest_finite_bits(x, n));
  qparams.zero_point = kZeroPoint;
  kernels.quantize_run(x, codes, n, FloatType::kFloat32, qparams, kCodes);
  return qparams.scale;
}
