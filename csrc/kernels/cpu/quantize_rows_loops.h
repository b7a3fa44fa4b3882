// quantize_row() as plain loops over the contract's scalar functions, which the compiler turns into vectors. Included
// only by quantize_rows_*.cpp, inside a namespace of the instruction set's own.

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

TQ_HOST_DEVICE float quantize_row_codes(const float* x, int64_t n, uint8_t* codes) {
  const auto qparams = numerics::dynamic_qparams(largest_finite_bits(x, n));
  for (int64_t i = 0; i < n; ++i) codes[i] = static_cast<uint8_t>(numerics::dynamic_code(x[i], qparams) + 128);
  return qparams.scale;
}
