// Implements nn::FakeQuantize over the training ops of csrc/ops/; called by nn/layers.cpp and by users' models.
#include "nn/fake_quantize.h"

#include <limits>

#include "ops/observe.h"
#include "ops/ops.h"

namespace torchquant::nn {

FakeQuantizeOptions FakeQuantizeOptions::weight(int64_t channels, int64_t axis, int64_t bits) {
  TORCH_CHECK(bits >= 2 && bits <= 8, "FakeQuantizeOptions::weight: bits must be in 2..8, got ", bits);
  const int64_t quant_max = (int64_t{1} << (bits - 1)) - 1;
  FakeQuantizeOptions options;
  options.quant_min = -quant_max;
  options.quant_max = quant_max;
  options.symmetric = true;
  options.axis = axis;
  options.channels = channels;
  options.averaging_constant = 1.0;  // weights are seen whole at every step: no history
  return options;
}

FakeQuantizeImpl::FakeQuantizeImpl(FakeQuantizeOptions options_) : options(options_) { reset(); }

void FakeQuantizeImpl::reset() {
  constexpr float kInfinity = std::numeric_limits<float>::infinity();
  const auto fp32 = torch::TensorOptions().dtype(torch::kFloat32);
  scale = register_buffer("scale", torch::ones({options.channels}, fp32));
  zero_point = register_buffer("zero_point", torch::zeros({options.channels}, fp32));
  min_val = register_buffer("min_val", torch::full({options.channels}, kInfinity, fp32));
  max_val = register_buffer("max_val", torch::full({options.channels}, -kInfinity, fp32));
  nonfinite_count = register_buffer("nonfinite_count", torch::zeros({1}, fp32.dtype(torch::kInt64)));
}

void FakeQuantizeImpl::pretty_print(std::ostream& stream) const {
  stream << "torchquant::nn::FakeQuantize(quant_min=" << options.quant_min << ", quant_max=" << options.quant_max
         << ", symmetric=" << (options.symmetric ? "true" : "false");
  if (options.axis) stream << ", axis=" << *options.axis << ", channels=" << options.channels;
  stream << ")";
}

void FakeQuantizeImpl::observe(const torch::Tensor& x) {
  torch::NoGradGuard no_grad;
  observe_moving_average(x.detach(), min_val, max_val, nonfinite_count, options.axis, std::nullopt,
                         options.averaging_constant);
  auto [new_scale, new_zero_point] =
      qparams_from_min_max(min_val, max_val, options.symmetric, options.quant_min, options.quant_max);
  scale.copy_(new_scale);
  zero_point.copy_(new_zero_point);
  has_range_ = true;
}

bool FakeQuantizeImpl::observed() const { return min_val.le(max_val).all().item<bool>(); }

void FakeQuantizeImpl::require_range() {
  if (has_range_) return;
  TORCH_CHECK(observed(),
              "FakeQuantize: nothing was observed, so there is no range to fake-quantize with; run the model "
              "on representative inputs with observer_enabled first");
  has_range_ = true;
}

torch::Tensor FakeQuantizeImpl::forward(const torch::Tensor& x) {
  if (observer_enabled && fake_quant_enabled) {
    has_range_ = true;
    return fused_observe_fake_quantize(x, min_val, max_val, nonfinite_count, scale, zero_point,
                                       options.averaging_constant, options.axis, options.symmetric, options.quant_min,
                                       options.quant_max);
  }
  if (observer_enabled) observe(x);
  if (!fake_quant_enabled) return x;
  require_range();
  return fake_quantize(x, scale, zero_point, options.axis, std::nullopt, options.quant_min, options.quant_max);
}

namespace {

template <typename Function>
void for_each_fake_quantize(torch::nn::Module& module, const Function& function) {
  for (auto& item : module.named_modules("", /*include_self=*/true)) {
    if (auto* fake_quant = item.value()->as<FakeQuantizeImpl>()) function(item.key(), *fake_quant);
  }
}

void check_range(const std::string& name, FakeQuantizeImpl& fake_quant) {
  TORCH_CHECK(fake_quant.observed(), "freeze_qparams: '", name,
              "' has observed nothing; run the model on representative inputs first");
  const int64_t nonfinite = fake_quant.nonfinite_count.item<int64_t>();
  TORCH_CHECK(nonfinite == 0, "freeze_qparams: '", name, "' observed ", nonfinite,
              " values that were NaN or infinite; its range would be meaningless");
}

// Only what was trained or calibrated: a range that is frozen, or that was never asked for, stays as it is.
void observe_weights(torch::nn::Module& module) {
  for (auto& layer : module.modules(/*include_self=*/true)) {
    const auto children = layer->named_children();
    const auto parameters = layer->named_parameters(/*recurse=*/false);
    const auto* child = children.find("weight_fake_quant");
    const torch::Tensor* weight = parameters.find("weight");
    auto* fake_quant = child ? (*child)->as<FakeQuantizeImpl>() : nullptr;
    if (fake_quant && weight && fake_quant->observer_enabled && fake_quant->observed()) fake_quant->observe(*weight);
  }
}

}  // namespace

void start_calibration(torch::nn::Module& module) {
  for_each_fake_quantize(module, [](const std::string&, FakeQuantizeImpl& fake_quant) {
    fake_quant.observer_enabled = true;
    fake_quant.fake_quant_enabled = false;
  });
}

void freeze_qparams(torch::nn::Module& module) {
  observe_weights(module);
  for_each_fake_quantize(module, check_range);
  for_each_fake_quantize(module, [](const std::string&, FakeQuantizeImpl& fake_quant) {
    fake_quant.observer_enabled = false;
    fake_quant.fake_quant_enabled = true;
  });
}

}  // namespace torchquant::nn
