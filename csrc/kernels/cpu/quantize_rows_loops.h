// quantize_row(): the largest value by a plain loop, which the compiler turns into vectors, then the codes by the
// quantizing kernel of the instruction set. Included only by quantize_rows_*.cpp, inside a namespace of the set's own.

// A zero point of 128 gives the codes of zero point 0, plus 128.
inline float quantize_row_codes(const FakeQuantizeKernels& kernels, const float* x, int64_t n, uint8_t* codes) {
  constexpr float kZeroPoint = kDynamicZeroPoint;
  constexpr QRange kCodes{numerics::kDynamicRange.quant_min + kZeroPoint,
                          numerics::kDynamicRange.quant_max + kZeroPoint};
  QParams qparams = numerics::dynamic_qparams(numerics::largest_finite_bits(x, n));
  qparams.zero_point = kZeroPoint;
  kernels.quantize_run(x, codes, n, FloatType::kFloat32, qparams, kCodes);
  return qparams.scale;
}
