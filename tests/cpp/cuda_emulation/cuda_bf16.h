// The bf16 type of CUDA and its conversions, by csrc/numerics/float16.h; see emulation.h.
#pragma once

#include "numerics/float16.h"

// A type of its own: numerics' functions would otherwise be found beside those of the kernels.
struct __nv_bfloat16 {
  uint16_t bits;
};

inline float __bfloat162float(__nv_bfloat16 value) {
  return torchquant::numerics::to_float(torchquant::numerics::BFloat16{value.bits});
}
inline __nv_bfloat16 __float2bfloat16_rn(float value) {
  return {torchquant::numerics::from_float<torchquant::numerics::BFloat16>(value).bits};
}
