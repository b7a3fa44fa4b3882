// Constants of the AVX512-VNNI kernels' output step. Called through vnni_codes.h.
#include "kernels/cpu/vnni_codes.h"

#include <algorithm>
#include <iterator>

namespace torchquant::kernels::avx512_vnni {

using numerics::Activation;

bool is_byte_clamp(const OutputSpec& output) {
  const numerics::QRange clamp = output.activation.clamp;
  return output.type != ElementType::kFloat32 &&
         (output.activation.kind == Activation::kNone ||
          (output.activation.kind == Activation::kClamp && clamp.quant_min <= clamp.quant_max));
}

// A clamp commutes with rounding and saturation, all of them monotone, so its bounds become bounds of the code.
CodeVectors code_vectors(const OutputSpec& output) {
  QRange bounds = output.range;
  if (output.activation.kind == Activation::kClamp) {
    bounds.quant_min = numerics::output_code(output.activation.clamp.quant_min, output.zero_point, output.range);
    bounds.quant_max = numerics::output_code(output.activation.clamp.quant_max, output.zero_point, output.range);
  }
  const int bias = output.type == ElementType::kInt8 ? 128 : 0;
  CodeVectors codes;
  std::fill(std::begin(codes.zero_point), std::end(codes.zero_point), static_cast<int16_t>(output.zero_point + bias));
  std::fill(std::begin(codes.lo), std::end(codes.lo), static_cast<uint8_t>(static_cast<int>(bounds.quant_min) + bias));
  std::fill(std::begin(codes.hi), std::end(codes.hi), static_cast<uint8_t>(static_cast<int>(bounds.quant_max) + bias));
  std::fill(std::begin(codes.flip), std::end(codes.flip), static_cast<uint8_t>(bias));
  return codes;
}

}  // namespace torchquant::kernels::avx512_vnni
