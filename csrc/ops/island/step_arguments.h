// Reading the arguments of integer ops in step kinds: the shared ones in the kernels' form. The interpreter's run on
// meta tensors has checked them. Used by steps_*.cpp.
#pragma once

#include "ops/island/plan_builder.h"
#include "ops/quantized_common.h"

namespace torchquant::island {

inline int64_t integer(const StepView& step, const char* name) { return step.literal(name).toInt(); }
inline double real(const StepView& step, const char* name) { return step.literal(name).toDouble(); }
inline std::vector<int64_t> integers(const StepView& step, const char* name) {
  return step.literal(name).toIntVector();
}

// The kernels store codes and fp32; halves are converted behind them, by the op.
inline bool stores_directly(const StepView& step) {
  const at::ScalarType dtype = step.literal("output_dtype").toScalarType();
  return dtype == ops::compute_dtype(dtype);
}

inline kernels::OutputSpec output_spec(const char* op, const StepView& step) {
  const std::vector<double> bounds = step.literal("activation_args").toDoubleVector();
  return ops::output_spec(op, {step.literal("activation").toStringView(), bounds, real(step, "output_scale"),
                               integer(step, "output_zero_point"), integer(step, "output_quant_min"),
                               integer(step, "output_quant_max"), step.literal("output_dtype").toScalarType()});
}

}  // namespace torchquant::island
