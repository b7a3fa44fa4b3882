#include "runtime/measure.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <numeric>
#include <optional>

#include "ATen/core/Tensor.h"
#include "c10/core/InferenceMode.h"
#include "c10/core/impl/VirtualGuardImpl.h"
#include "c10/util/Exception.h"

namespace torchquant {
namespace {

// Kernels on an accelerator run behind our back; without this a measurement would only time their launch.
void wait_for_devices(const std::vector<c10::IValue>& inputs) {
  for (const c10::IValue& input : inputs) {
    if (!input.isTensor() || input.toTensor().device().is_cpu()) continue;
    const c10::Device device = input.toTensor().device();
    c10::impl::VirtualGuardImpl(device.type()).synchronizeDevice(device.index());
  }
}

std::optional<at::Device> device_of(const torch::jit::Module& module) {
  for (const at::Tensor& buffer : module.buffers()) return buffer.device();
  return std::nullopt;
}

// Ops would name their own arguments, which the caller does not know.
void check_one_device(const torch::jit::Module& module, const std::vector<c10::IValue>& inputs) {
  const auto found = device_of(module);
  if (!found) return;
  const at::Device device = *found;
  for (size_t i = 0; i < inputs.size(); ++i) {
    if (!inputs[i].isTensor()) continue;
    TORCH_CHECK_VALUE(inputs[i].toTensor().device() == device, "torchquant: the module is on ", device,
                      " and its input ", i, " on ", inputs[i].toTensor().device(), "; move one of them");
  }
}

c10::IValue forward(torch::jit::Module& module, const std::vector<c10::IValue>& inputs) {
  const c10::InferenceMode guard;
  c10::IValue output = module.forward(inputs);
  wait_for_devices(inputs);
  return output;
}

// Nearest rank: the smallest time that at least `percent` of the runs did not exceed.
double percentile(const std::vector<double>& sorted, double percent) {
  const auto rank = static_cast<size_t>(std::ceil(percent / 100 * static_cast<double>(sorted.size())));
  return sorted[std::max<size_t>(rank, 1) - 1];
}

}  // namespace

c10::IValue run(torch::jit::Module& module, const std::vector<c10::IValue>& inputs) {
  check_one_device(module, inputs);
  return forward(module, inputs);
}

void warm_up(torch::jit::Module& module, const std::vector<c10::IValue>& inputs, int64_t runs) {
  check_one_device(module, inputs);
  for (int64_t i = 0; i < runs; ++i) forward(module, inputs);
}

std::vector<double> time_runs(torch::jit::Module& module, const std::vector<c10::IValue>& inputs,
                              MeasureOptions options) {
  TORCH_CHECK_VALUE(options.runs > 0, "torchquant::measure: runs must be positive; got ", options.runs);
  warm_up(module, inputs, options.warm_up_runs);
  std::vector<double> times_ms;
  for (int64_t i = 0; i < options.runs; ++i) {
    const auto start = std::chrono::steady_clock::now();
    forward(module, inputs);
    times_ms.push_back(std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - start).count());
  }
  return times_ms;
}

Latency summarize(std::vector<double> times_ms) {
  TORCH_CHECK_VALUE(!times_ms.empty(), "torchquant::summarize: there must be at least one time");
  std::sort(times_ms.begin(), times_ms.end());
  const auto count = static_cast<double>(times_ms.size());
  return {.runs = static_cast<int64_t>(times_ms.size()),
          .p50_ms = percentile(times_ms, 50),
          .p95_ms = percentile(times_ms, 95),
          .p99_ms = percentile(times_ms, 99),
          .mean_ms = std::accumulate(times_ms.begin(), times_ms.end(), 0.0) / count,
          .min_ms = times_ms.front()};
}

Latency measure(torch::jit::Module& module, const std::vector<c10::IValue>& inputs, MeasureOptions options) {
  return summarize(time_runs(module, inputs, options));
}

}  // namespace torchquant
