// The fp8 kernels as plain loops over the contract's scalar functions, which the compiler turns into vectors. Included
// only by float8_*.cpp, inside a namespace of the instruction set's own.

template <typename Format>
void quantize_run(const float* x, int64_t n, float scale, uint8_t* codes) {
  const float inv_scale = 1.0f / scale;
  for (int64_t i = 0; i < n; ++i) codes[i] = numerics::quantize_float8<Format>(x[i], inv_scale);
}

template <typename Format>
void dequantize_run(const uint8_t* codes, int64_t n, float scale, float* y) {
  for (int64_t i = 0; i < n; ++i) y[i] = numerics::float8_value<Format>(codes[i]) * scale;
}

template <typename Format>
void fake_quantize_run(const float* x, int64_t n, float scale, float* y) {
  const float inv_scale = 1.0f / scale;
  for (int64_t i = 0; i < n; ++i) y[i] = numerics::fake_quantize_float8<Format>(x[i], scale, inv_scale);
}

float scale_of(const float* x, int64_t n, Float8Type type) {
  const int32_t largest = numerics::largest_finite_bits(x, n);
  return type == Float8Type::kE4M3 ? numerics::float8_scale<numerics::Float8E4M3>(largest)
                                   : numerics::float8_scale<numerics::Float8E5M2>(largest);
}

void quantize(const float* x, int64_t n, float scale, Float8Type type, uint8_t* codes) {
  type == Float8Type::kE4M3 ? quantize_run<numerics::Float8E4M3>(x, n, scale, codes)
                            : quantize_run<numerics::Float8E5M2>(x, n, scale, codes);
}

void dequantize(const uint8_t* codes, int64_t n, float scale, Float8Type type, float* y) {
  type == Float8Type::kE4M3 ? dequantize_run<numerics::Float8E4M3>(codes, n, scale, y)
                            : dequantize_run<numerics::Float8E5M2>(codes, n, scale, y);
}

void fake_quantize(const float* x, int64_t n, float scale, Float8Type type, float* y) {
  type == Float8Type::kE4M3 ? fake_quantize_run<numerics::Float8E4M3>(x, n, scale, y)
                            : fake_quantize_run<numerics::Float8E5M2>(x, n, scale, y);
}
