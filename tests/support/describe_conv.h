// Names a convolution of a test in its failures; for the tests of the CPU and the CUDA engine.
#pragma once

#include <sstream>
#include <string>

#include "kernels/integer_conv.h"

namespace torchquant::test {

// Batch, image, channels and both axes of a layer that has these members.
template <typename Layer>
std::string describe_shape(const Layer& l) {
  std::ostringstream s;
  s << "batch " << l.batch << ", image " << l.height << "x" << l.width << ", channels " << l.spec.in_channels << " > "
    << l.spec.out_channels << ", groups " << l.spec.groups << (l.spec.transposed ? ", transposed" : "");
  for (const kernels::ConvAxisSpec& a : {l.spec.height, l.spec.width}) {
    s << ", axis(k " << a.kernel << " s " << a.stride << " p " << a.padding << " d " << a.dilation << " op "
      << a.output_padding << ")";
  }
  return s.str();
}

}  // namespace torchquant::test
