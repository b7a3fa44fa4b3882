// From the FloatType of a kernel's arguments to the C++ type of its elements. Used by every CPU training kernel.
#pragma once

#include "kernels/fake_quantize.h"
#include "numerics/float16.h"

namespace torchquant::kernels {

// Calls body(float{}), body(BFloat16{}) or body(Float16{}). Each caller passes a lambda, whose type is its own, so no
// instance is shared between files compiled for different instruction sets.
template <typename Body>
TQ_HOST_DEVICE void with_float_type(FloatType type, Body&& body) {
  switch (type) {
    case FloatType::kFloat32:
      return body(float{});
    case FloatType::kBFloat16:
      return body(numerics::BFloat16{});
    case FloatType::kFloat16:
      return body(numerics::Float16{});
  }
}

}  // namespace torchquant::kernels
