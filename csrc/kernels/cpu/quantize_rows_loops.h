// quantize_row() as plain loops over the contract's scalar functions, which the compiler turns into vectors. Included only
// by quantize_rows_*.cpp, inside a namespace of the instruction set's own.

// Magnitudes are compared as bits: that gives the same maximum, and compilers do not turn a maximum of floats into
// vectors. NaN and infinities count as nothing.
TQ_HOST_DEVICE float largest_finite(const float* x, int64_t n) {
  int32_t largest = 0;
  for (int64_t i = 0; i < n; ++i) {
    const auto bits = static_cast<int32_t>(numerics::float_to_bits(x[i]) & 0x7fffffffu);
    const int32_t finite = bits < 0x7f800000 ? bits : 0;
    largest = finite > largest ? finite : largest;
  }
  return numerics::bits_to_float(static_cast<uint32_t>(largest));
}

TQ_HOST_DEVICE float quantize_row_codes(const float* x, int64_t n, uint8_t* codes) {
  constexpr numerics::QRange kRange{-127.0f, 127.0f};
  const float largest = largest_finite(x, n);
  const auto chosen = numerics::choose_symmetric_qparams(-largest, largest, kRange);
  const auto qparams = numerics::make_qparams(chosen.scale, chosen.zero_point, kRange);
  for (int64_t i = 0; i < n; ++i) {
    codes[i] = static_cast<uint8_t>(static_cast<int32_t>(numerics::quantize_value(x[i], qparams, kRange)) + 128);
  }
  return chosen.scale;
}
