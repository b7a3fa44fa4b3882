// Implements ops/observer_state.h.
#include "ops/observer_state.h"

#include "numerics/stats.h"
#include "ops/granularity.h"

namespace torchquant::ops {

void check_state_tensor(const char* op, const char* argument, const at::Tensor& tensor, at::ScalarType dtype,
                        c10::SymIntArrayRef shape, const at::Tensor& like) {
  check_dtype(op, argument, tensor, dtype);
  check_same_device(op, argument, tensor, like);
  TORCH_CHECK(tensor.dim() == static_cast<int64_t>(shape.size()), op, ": ", argument, " must have shape ", shape,
              ", got ", tensor.sym_sizes());
  for (size_t d = 0; d < shape.size(); ++d) {
    TORCH_SYM_CHECK(tensor.sym_size(d).sym_eq(shape[d]), op, ": ", argument, " must have shape ", shape, ", got ",
                    tensor.sym_sizes());
  }
  TORCH_CHECK(tensor.is_contiguous(), op, ": ", argument, " must be contiguous, got strides ", tensor.sym_strides());
}

void check_range_state(const char* op, const at::Tensor& x, const at::Tensor& min_val, const at::Tensor& max_val,
                       const at::Tensor& nonfinite_count, const Granularity& granularity) {
  check_float(op, "x", x);
  check_granularity(op, x, granularity);
  const c10::SymDimVector shape = params_shape(x, granularity);
  check_state_tensor(op, "min_val", min_val, at::kFloat, shape, x);
  check_state_tensor(op, "max_val", max_val, at::kFloat, shape, x);
  check_state_tensor(op, "nonfinite_count", nonfinite_count, at::kLong, {1}, x);
}

void check_averaging_constant(const char* op, double averaging_constant) {
  TORCH_CHECK(averaging_constant > 0.0 && averaging_constant <= 1.0, op,
              ": averaging_constant must be greater than 0 and at most 1, got ", averaging_constant);
}

void check_histogram_state(const char* op, const at::Tensor& histogram, const at::Tensor& min_val,
                           const at::Tensor& max_val) {
  TORCH_CHECK(min_val.dim() == 1, op, ": min_val must have one dimension, got shape ", min_val.sym_sizes());
  check_state_tensor(op, "min_val", min_val, at::kFloat, min_val.sym_sizes(), histogram);
  check_state_tensor(op, "max_val", max_val, at::kFloat, min_val.sym_sizes(), histogram);
  TORCH_CHECK(histogram.dim() == 1 || histogram.dim() == 2, op,
              ": histogram must have shape [bins] or [channels, bins], got ", histogram.sym_sizes());
  const c10::SymInt bins = histogram.sym_size(-1);
  c10::SymDimVector shape{bins};
  if (histogram.dim() == 2) shape.insert(shape.begin(), min_val.sym_size(0));
  check_state_tensor(op, "histogram", histogram, at::kLong, shape, histogram);
  TORCH_SYM_CHECK(min_val.sym_numel().sym_eq(histogram.dim() == 2 ? histogram.sym_size(0) : c10::SymInt(1)), op,
                  ": min_val must have one element for each histogram, got shape ", min_val.sym_sizes(),
                  " and a histogram of shape ", histogram.sym_sizes());
  TORCH_CHECK(bins >= numerics::kMinHistogramBins && bins <= numerics::kMaxHistogramBins, op,
              ": histogram must have from ", numerics::kMinHistogramBins, " to ", numerics::kMaxHistogramBins,
              " bins, got ", bins);
}

}  // namespace torchquant::ops
