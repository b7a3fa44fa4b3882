// The fp16 type of CUDA and its conversions, by csrc/numerics/float16.h; see emulation.h.
#pragma once

#include "numerics/float16.h"

// A type of its own: numerics' functions would otherwise be found beside those of the kernels.
struct __half {
  uint16_t bits;
};

inline float __half2float(__half value) {
  return torchquant::numerics::to_float(torchquant::numerics::Float16{value.bits});
}
inline __half __float2half_rn(float value) {
  return {torchquant::numerics::from_float<torchquant::numerics::Float16>(value).bits};
}
