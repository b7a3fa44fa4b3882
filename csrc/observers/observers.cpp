// Implements observers/observers.h over the observer ops.
#include "observers/observers.h"

#include <ATen/core/grad_mode.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/full.h>
#include <ATen/ops/le.h>
#include <ATen/ops/maximum.h>
#include <ATen/ops/minimum.h>
#include <ATen/ops/zeros.h>
#include <ATen/ops/zeros_like.h>

#include <limits>

#include "ops/observe.h"
#include "ops/ops.h"

namespace torchquant::observers {

using State = std::map<std::string, at::Tensor>;
using QParams = std::tuple<at::Tensor, at::Tensor>;

void Observer::observe(const at::Tensor& x) {
  at::NoGradGuard no_grad;
  if (state_.empty()) allocate(x);
  update(x);
}

void Observer::allocate(const at::Tensor& x) {
  constexpr float kInfinity = std::numeric_limits<float>::infinity();
  const auto& axis = options_.axis;
  TORCH_CHECK(!axis || (*axis >= -x.dim() && *axis < x.dim()), name(),
              ": axis must name a dimension of the tensor, got ", *axis, " for shape ", x.sizes());
  const auto fp32 = at::TensorOptions().dtype(at::kFloat).device(x.device());
  const at::Tensor min_val = at::full({axis ? x.size(*axis) : 1}, kInfinity, fp32);
  State state = initial_state(min_val);
  state["min_val"] = min_val;
  state["max_val"] = -min_val;
  state["nonfinite_count"] = at::zeros({1}, fp32.dtype(at::kLong));
  state_ = std::move(state);
}

void Observer::merge(const Observer& other) {
  TORCH_CHECK(std::string(name()) == other.name(), name(), "::merge: other must be of the same class, got ",
              other.name());
  TORCH_CHECK(options_.axis == other.options_.axis, name(), "::merge: other must have the same axis");
  if (other.state_.empty()) return;
  at::NoGradGuard no_grad;
  if (state_.empty()) {
    load_state(other.state_);
    return;
  }
  for (const auto& [key, value] : state_) {
    TORCH_CHECK(value.sizes() == other.state_.at(key).sizes(), name(), "::merge: '", key, "' of other must have shape ",
                value.sizes(), ", got ", other.state_.at(key).sizes());
  }
  merge_state(other);
  tensor("nonfinite_count").add_(other.tensor("nonfinite_count").to(tensor("nonfinite_count").device()));
}

QParams Observer::calculate_qparams() const {
  TORCH_CHECK(observed(), name(), "::calculate_qparams: ",
              state_.empty() || !options_.axis ? "nothing was observed (empty calibration)"
                                               : "a channel saw no finite value (empty calibration)");
  at::NoGradGuard no_grad;
  return qparams();
}

bool Observer::observed() const {
  return !state_.empty() && tensor("min_val").le(tensor("max_val")).all().item<bool>();
}

int64_t Observer::nonfinite() const { return state_.empty() ? 0 : tensor("nonfinite_count").item<int64_t>(); }

void Observer::load_state(const State& state) {
  State copies;
  State expected = initial_state(state.count("min_val") ? state.at("min_val") : at::zeros({1}));
  for (const char* always : {"min_val", "max_val", "nonfinite_count"}) expected[always] = at::Tensor();
  for (const auto& [key, unused] : expected) {
    TORCH_CHECK(state.count(key), name(), "::load_state: '", key, "' is missing");
    copies[key] = state.at(key).clone();
  }
  for (const auto& [key, unused] : state) {
    TORCH_CHECK(expected.count(key), name(), "::load_state: '", key, "' is no state of this observer");
  }
  state_ = std::move(copies);
}

// ---- min-max

State MinMaxObserver::initial_state(const at::Tensor& /*like*/) const { return {}; }

void MinMaxObserver::update(const at::Tensor& x) {
  observe_min_max(x, tensor("min_val"), tensor("max_val"), tensor("nonfinite_count"), options().axis);
}

void MinMaxObserver::merge_state(const Observer& other) {
  const auto& from = other.state();
  at::Tensor min_val = tensor("min_val");
  at::Tensor max_val = tensor("max_val");
  at::minimum_out(min_val, min_val, from.at("min_val").to(min_val.device()));
  at::maximum_out(max_val, max_val, from.at("max_val").to(max_val.device()));
}

QParams MinMaxObserver::qparams() const {
  return qparams_from_min_max(tensor("min_val"), tensor("max_val"), options().symmetric, options().quant_min,
                              options().quant_max);
}

// ---- moving average

State MovingAverageMinMaxObserver::initial_state(const at::Tensor& like) const {
  return {{"merged", at::zeros_like(like, at::kLong)}};
}

void MovingAverageMinMaxObserver::update(const at::Tensor& x) {
  observe_moving_average(x, tensor("min_val"), tensor("max_val"), tensor("nonfinite_count"), options().axis,
                         std::nullopt, averaging_constant_);
}

void MovingAverageMinMaxObserver::merge_state(const Observer& other) {
  const auto& from = other.state();
  const auto device = tensor("min_val").device();
  merge_moving_average(tensor("min_val"), tensor("max_val"), tensor("merged"), from.at("min_val").to(device),
                       from.at("max_val").to(device), from.at("merged").to(device));
}

QParams MovingAverageMinMaxObserver::qparams() const {
  return qparams_from_min_max(tensor("min_val"), tensor("max_val"), options().symmetric, options().quant_min,
                              options().quant_max);
}

// ---- histogram

State HistogramObserver::initial_state(const at::Tensor& like) const {
  const auto int64 = like.options().dtype(at::kLong);
  return {{"histogram",
           options().axis ? at::zeros({like.numel(), histogram_.bins}, int64) : at::zeros({histogram_.bins}, int64)}};
}

void HistogramObserver::update(const at::Tensor& x) {
  observe_histogram(x, tensor("histogram"), tensor("min_val"), tensor("max_val"), tensor("nonfinite_count"),
                    options().axis);
}

void HistogramObserver::merge_state(const Observer& other) {
  const auto& from = other.state();
  const auto device = tensor("min_val").device();
  merge_histogram(tensor("histogram"), tensor("min_val"), tensor("max_val"), from.at("histogram").to(device),
                  from.at("min_val").to(device), from.at("max_val").to(device));
}

QParams HistogramObserver::qparams() const {
  const at::Tensor& counts = tensor("histogram");
  const at::Tensor& min_val = tensor("min_val");
  const at::Tensor& max_val = tensor("max_val");
  const auto [quant_min, quant_max, symmetric, axis] = options();
  switch (histogram_.search) {
    case HistogramSearch::kPercentile:
      return qparams_from_histogram_percentile(counts, min_val, max_val, histogram_.percentile, symmetric, quant_min,
                                               quant_max);
    case HistogramSearch::kEntropy:
      return qparams_from_histogram_entropy(counts, min_val, max_val, symmetric, quant_min, quant_max);
    case HistogramSearch::kMse:
      break;
  }
  return qparams_from_histogram_mse(counts, min_val, max_val, symmetric, quant_min, quant_max);
}

}  // namespace torchquant::observers
