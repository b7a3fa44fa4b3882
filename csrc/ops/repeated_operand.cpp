// Recognizes broadcasts that kernels read in place; see repeated_operand.h.
#include "ops/repeated_operand.h"

#include <algorithm>
#include <numeric>
#include <vector>

#include "ops/quantized_common.h"

namespace torchquant::ops {
namespace {

// Dimensions from the innermost in memory to the outermost, without those of size 1.
std::vector<int64_t> memory_order(const at::Tensor& out) {
  std::vector<int64_t> order(out.dim());
  std::iota(order.begin(), order.end(), 0);
  std::erase_if(order, [&](int64_t d) { return out.size(d) == 1; });
  std::sort(order.begin(), order.end(), [&](int64_t a, int64_t b) { return out.stride(a) < out.stride(b); });
  return order;
}

// From the inside: dimensions that `view` has, those that it repeats over, those that it has again.
std::optional<kernels::Repeat> find_repeat(const at::Tensor& view, const at::Tensor& out) {
  kernels::Repeat repeat;
  int64_t dense = 1;  // elements of the operand inside the dimension
  enum { kInner, kRepeated, kOuter } part = kInner;
  for (const int64_t d : memory_order(out)) {
    const bool repeats = view.stride(d) == 0;
    if (repeats && part == kInner) part = kRepeated;
    if (!repeats && part == kRepeated) part = kOuter;
    if (repeats != (part == kRepeated)) return std::nullopt;
    if (!repeats && view.stride(d) != dense) return std::nullopt;
    (repeats ? repeat.count : dense) *= out.size(d);
    if (part == kInner) repeat.inner = dense;
  }
  return repeat;
}

}  // namespace

RepeatedOperand repeated_operand(const at::Tensor& x, const at::Tensor& out, int64_t run) {
  if (x.sizes() != out.sizes() && out.numel() > 0) {
    const auto repeat = find_repeat(x.expand(out.sizes()), out);
    if (repeat && repeat->inner % run == 0) return {x, *repeat};
  }
  return {match_layout(x, out), {}};
}

}  // namespace torchquant::ops
