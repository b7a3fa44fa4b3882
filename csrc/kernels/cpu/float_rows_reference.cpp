// The reference of kernels/float_rows.h: its formulas, one value at a time.
#include <cmath>

#include "kernels/cpu/lane_sums.h"
#include "kernels/float_rows.h"

namespace torchquant::kernels::reference {
namespace {

void normalize(const LayerNormArgs& args, const float* x, float* out) {
  const auto n = static_cast<float>(args.columns);
  float sums[kLanes] = {};
  for (int64_t i = 0; i < args.columns; ++i) sums[i % kLanes] += x[i];
  const float mean = fold_lanes(sums) / n;
  float squares[kLanes] = {};
  for (int64_t i = 0; i < args.columns; ++i) {
    const float centred = x[i] - mean;
    squares[i % kLanes] = fmaf(centred, centred, squares[i % kLanes]);
  }
  const float r = 1.0f / std::sqrt(fold_lanes(squares) / n + args.eps);
  for (int64_t i = 0; i < args.columns; ++i) {
    const float weight = args.weight == nullptr ? 1.0f : args.weight[i];
    const float bias = args.bias == nullptr ? 0.0f : args.bias[i];
    out[i] = fmaf((x[i] - mean) * r, weight, bias);
  }
}

void layer_norm(const LayerNormArgs& args, IndexRange rows) {
  for (int64_t row = rows.begin; row < rows.end; ++row) {
    normalize(args, args.x + row * args.columns, args.out + row * args.columns);
  }
}

void add(const AddFloatsArgs& args, IndexRange elements) {
  for (int64_t i = elements.begin; i < elements.end; ++i) args.out[i] = args.a[i] + args.b[i];
}

}  // namespace

extern const FloatRowKernels kFloatRowKernels;
const FloatRowKernels kFloatRowKernels{layer_norm, add};

}  // namespace torchquant::kernels::reference
