// Latency measurement: counts its runs, orders its percentiles, refuses to measure nothing.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "ATen/ops/ones.h"
#include "ATen/ops/zeros.h"
#include "runtime/measure.h"

namespace torchquant {
namespace {

torch::jit::Module counting_module() {
  torch::jit::Module module("Counter");
  module.register_buffer("calls", at::zeros({1}));
  module.define("def forward(self, x):\n  self.calls.add_(1)\n  return x\n");
  return module;
}

TEST(Measure, CountsWarmUpAndRuns) {
  auto module = counting_module();
  const Latency latency = measure(module, {at::ones({2})}, {.warm_up_runs = 3, .runs = 20});
  EXPECT_EQ(latency.runs, 20);
  EXPECT_EQ(module.attr("calls").toTensor().item<float>(), 23);
  EXPECT_GT(latency.min_ms, 0);
  EXPECT_LE(latency.min_ms, latency.p50_ms);
  EXPECT_LE(latency.p50_ms, latency.p95_ms);
  EXPECT_LE(latency.p95_ms, latency.p99_ms);
}

TEST(Measure, SummarizesTimesOfAnyOrderByNearestRank) {
  std::vector<double> times_ms;
  for (int i = 100; i > 0; --i) times_ms.push_back(i);
  const Latency latency = summarize(times_ms);
  EXPECT_EQ(latency.runs, 100);
  EXPECT_EQ(latency.min_ms, 1);
  EXPECT_EQ(latency.p50_ms, 50);
  EXPECT_EQ(latency.p95_ms, 95);
  EXPECT_EQ(latency.p99_ms, 99);
  EXPECT_EQ(latency.mean_ms, 50.5);
}

TEST(Measure, RefusesToMeasureNothing) {
  auto module = counting_module();
  EXPECT_THROW(measure(module, {at::ones({2})}, {.runs = 0}), c10::ValueError);
  EXPECT_THROW(summarize({}), c10::ValueError);
}

}  // namespace
}  // namespace torchquant
