// finish_tile() compiled for AVX2. Called through finish_tile.h.
#include <cstring>

#include "kernels/cpu/finish_tile.h"
#include "numerics/activation.h"
#include "numerics/macros.h"
#include "numerics/requantize.h"

namespace torchquant::kernels::avx2 {
namespace {

using numerics::Activation;

#include "kernels/cpu/finish_tile_loops.h"

}  // namespace

void finish_tile(const FinishArgs& args) { finish(args); }

}  // namespace torchquant::kernels::avx2
