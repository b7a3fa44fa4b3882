// fake_quantize_and_observe: fake-quantizes with qparams that are given and moves the running range in the same pass
// over memory. A step of several processes runs it, because their ranges are merged after the forward.
#include <ATen/ops/empty_like.h>
#include <torch/library.h>

#include "ops/checks.h"
#include "ops/dispatch.h"
#include "ops/min_max.h"
#include "ops/observer_state.h"
#include "ops/ops.h"
#include "ops/recycled_memory.h"
#include "ops/straight_through.h"

namespace torchquant {

at::Tensor fake_quantize_and_observe(const at::Tensor& x, const at::Tensor& scale, const at::Tensor& zero_point,
                                     const at::Tensor& min_val, const at::Tensor& max_val,
                                     const at::Tensor& nonfinite_count, double averaging_constant, int64_t quant_min,
                                     int64_t quant_max) {
  static const auto op = ops::find_op<decltype(fake_quantize_and_observe)>("torchquant::fake_quantize_and_observe");
  return op.call(x, scale, zero_point, min_val, max_val, nonfinite_count, averaging_constant, quant_min, quant_max);
}

namespace ops {
namespace {

constexpr const char* kOp = "fake_quantize_and_observe";
constexpr Granularity kPerTensor{};

void check(const at::Tensor& x, const at::Tensor& scale, const at::Tensor& zero_point, const at::Tensor& min_val,
           const at::Tensor& max_val, const at::Tensor& nonfinite_count, double averaging_constant, int64_t quant_min,
           int64_t quant_max) {
  check_range_state(kOp, x, min_val, max_val, nonfinite_count, kPerTensor);
  check_averaging_constant(kOp, averaging_constant);
  check_range(kOp, quant_min, quant_max);
  check_qparams(kOp, x, scale, zero_point, kPerTensor);
}

at::Tensor meta(const at::Tensor& x, const at::Tensor& scale, const at::Tensor& zero_point, const at::Tensor& min_val,
                const at::Tensor& max_val, const at::Tensor& nonfinite_count, double averaging_constant,
                int64_t quant_min, int64_t quant_max) {
  check(x, scale, zero_point, min_val, max_val, nonfinite_count, averaging_constant, quant_min, quant_max);
  return at::empty_like(x);
}

// Block by block, so that the second of the two kernels finds its input in the cache. Returns what x holds.
kernels::MinMax quantize_and_observe_blocks(const at::Tensor& dense, const at::Tensor& output, const CpuQParams& params,
                                            numerics::QRange range) {
  const auto& kernels = kernels::fake_quantize_kernels();
  const auto type = float_type(dense);
  const auto size = static_cast<int64_t>(dense.element_size());
  const auto* x = static_cast<const std::byte*>(dense.const_data_ptr());
  auto* y = static_cast<std::byte*>(output.mutable_data_ptr());
  const numerics::QParams p = params.param(0);
  const auto widen = [](kernels::MinMax& total, const kernels::MinMax& part) {
    const auto merged = numerics::merge_ranges({total.min_val, total.max_val}, {part.min_val, part.max_val});
    total = {merged.min_val, merged.max_val, total.nonfinite + part.nonfinite};
  };
  kernels::MinMax all = kernels.min_max_run(x, 0, type);
  reduce_runs<kernels::MinMax>(
      params.pieces(),
      [&](int64_t begin, int64_t n, int64_t /*param*/) {
        kernels::MinMax seen = kernels.min_max_run(x, 0, type);
        for (int64_t end = begin + n; begin < end; begin += kernels::kReductionBlock) {
          const int64_t count = std::min(kernels::kReductionBlock, end - begin);
          widen(seen, kernels.min_max_run(x + begin * size, count, type));
          kernels.fake_quantize_run(x + begin * size, y + begin * size, count, type, p, range);
        }
        return seen;
      },
      [&](int64_t /*param*/, const kernels::MinMax& part) { widen(all, part); });
  return all;
}

at::Tensor cpu(const at::Tensor& x, const at::Tensor& scale, const at::Tensor& zero_point, const at::Tensor& min_val,
               const at::Tensor& max_val, const at::Tensor& nonfinite_count, double averaging_constant,
               int64_t quant_min, int64_t quant_max) {
  check(x, scale, zero_point, min_val, max_val, nonfinite_count, averaging_constant, quant_min, quant_max);
  const auto range = to_range(quant_min, quant_max);
  const at::Tensor input = to_dense(x);
  const CpuQParams params(kOp, input, scale, zero_point, kPerTensor, range);
  at::Tensor output = empty_like_recycled(input);
  const kernels::MinMax seen = quantize_and_observe_blocks(input, output, params, range);
  const numerics::Range batch{seen.min_val, seen.max_val};
  float& low = *min_val.mutable_data_ptr<float>();
  float& high = *max_val.mutable_data_ptr<float>();
  const auto running = numerics::moving_average({low, high}, batch, static_cast<float>(averaging_constant));
  low = running.min_val;
  high = running.max_val;
  *nonfinite_count.mutable_data_ptr<int64_t>() += seen.nonfinite;
  StraightThrough::tell(seen.nonfinite == 0 && nothing_clipped(batch, params.param(0), range));
  return output;
}

at::Tensor autograd(const at::Tensor& x, const at::Tensor& scale, const at::Tensor& zero_point,
                    const at::Tensor& min_val, const at::Tensor& max_val, const at::Tensor& nonfinite_count,
                    double averaging_constant, int64_t quant_min, int64_t quant_max) {
  TORCH_CHECK(!scale.requires_grad() && !zero_point.requires_grad(), kOp,
              ": scale and zero_point must not require a gradient; use fake_quantize to learn them");
  const auto run = [&] {
    at::AutoDispatchBelowAutograd below_autograd;  // not below ADInplaceOrView, which counts the mutations
    return fake_quantize_and_observe(x, scale, zero_point, min_val, max_val, nonfinite_count, averaging_constant,
                                     quant_min, quant_max);
  };
  if (!needs_node(x)) return run();
  return StraightThrough::apply(x, StraightThrough::Codes{std::nullopt, quant_min, quant_max}, [&] {
    return StraightThrough::Forward{run(), scale, zero_point};
  });
}

at::Tensor count_mutations(const at::Tensor& x, const at::Tensor& scale, const at::Tensor& zero_point,
                           const at::Tensor& min_val, const at::Tensor& max_val, const at::Tensor& nonfinite_count,
                           double averaging_constant, int64_t quant_min, int64_t quant_max) {
  at::Tensor output = NoGradient<fake_quantize_and_observe>::call(
      x, scale, zero_point, min_val, max_val, nonfinite_count, averaging_constant, quant_min, quant_max);
  bump_versions({min_val, max_val, nonfinite_count});
  return output;
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(torchquant, m) {
  m.def(
      "fake_quantize_and_observe(Tensor x, Tensor scale, Tensor zero_point, Tensor(a!) min_val, Tensor(b!) max_val, "
      "Tensor(c!) nonfinite_count, *, float averaging_constant, int quant_min, int quant_max) -> Tensor",
      {at::Tag::pt2_compliant_tag});
}
TORCH_LIBRARY_IMPL(torchquant, CPU, m) { m.impl(kOp, cpu); }
TORCH_LIBRARY_IMPL(torchquant, Meta, m) { m.impl(kOp, meta); }
TORCH_LIBRARY_IMPL(torchquant, Autograd, m) { m.impl(kOp, autograd); }
TORCH_LIBRARY_IMPL(torchquant, ADInplaceOrView, m) { m.impl(kOp, count_mutations); }

}  // namespace ops
}  // namespace torchquant
