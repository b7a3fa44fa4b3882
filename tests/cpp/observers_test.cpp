// The C++ observers: what they remember, merge and choose.
#include "observers/observers.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/equal.h>
#include <ATen/ops/randn.h>
#include <ATen/ops/tensor.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <functional>
#include <limits>
#include <memory>

namespace torchquant::observers {
namespace {

using ::testing::HasSubstr;

constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();

using Make = std::function<std::unique_ptr<Observer>(ObserverOptions)>;

std::unique_ptr<Observer> make_histogram(ObserverOptions options, HistogramSearch search) {
  return std::make_unique<HistogramObserver>(options, HistogramOptions{search, /*bins=*/2048, /*percentile=*/99.0});
}

const std::map<std::string, Make>& makers() {
  static const std::map<std::string, Make> all{
      {"min_max", [](ObserverOptions o) { return std::make_unique<MinMaxObserver>(o); }},
      {"moving_average", [](ObserverOptions o) { return std::make_unique<MovingAverageMinMaxObserver>(o, 0.5); }},
      {"percentile", [](ObserverOptions o) { return make_histogram(o, HistogramSearch::kPercentile); }},
      {"mse", [](ObserverOptions o) { return make_histogram(o, HistogramSearch::kMse); }},
      {"entropy", [](ObserverOptions o) { return make_histogram(o, HistogramSearch::kEntropy); }},
  };
  return all;
}

class EveryObserver : public ::testing::TestWithParam<std::string> {
 protected:
  std::unique_ptr<Observer> make(std::optional<int64_t> axis = std::nullopt) const {
    ObserverOptions options;
    options.axis = axis;
    return makers().at(GetParam())(options);
  }
};

bool same_state(const Observer& a, const Observer& b) {
  if (a.state().size() != b.state().size()) return false;
  for (const auto& [key, value] : a.state()) {
    if (!b.state().count(key) || !at::equal(value, b.state().at(key))) return false;
  }
  return true;
}

template <typename Function>
std::string error_of(const Function& function) {
  try {
    function();
  } catch (const c10::Error& error) {
    return error.what_without_backtrace();
  }
  return "no error";
}

TEST_P(EveryObserver, ChoosesParametersThatCoverTheBulkOfTheData) {
  const auto observer = make();
  observer->observe(at::randn({1000}) * 2.0 + 1.0);
  const auto [scale, zero_point] = observer->calculate_qparams();
  EXPECT_GT(scale.item<float>() * 255.0f, 4.0f);
  EXPECT_LT(scale.item<float>() * 255.0f, 20.0f);
  EXPECT_GT(zero_point.item<float>(), 40.0f);
  EXPECT_LT(zero_point.item<float>(), 150.0f);
}

TEST_P(EveryObserver, KeepsOneRangePerChannel) {
  const auto observer = make(1);
  const at::Tensor x = at::randn({8, 3, 5});
  observer->observe(x);
  EXPECT_TRUE(at::equal(observer->state().at("min_val"), x.amin({0, 2})));
  EXPECT_TRUE(at::equal(observer->state().at("max_val"), x.amax({0, 2})));
  EXPECT_EQ(std::get<0>(observer->calculate_qparams()).numel(), 3);
}

TEST_P(EveryObserver, CountsNonFiniteValuesAndLeavesThemOut) {
  const auto observer = make();
  observer->observe(at::tensor({1.0f, kNaN, -2.0f, std::numeric_limits<float>::infinity()}));
  EXPECT_EQ(observer->nonfinite(), 2);
  EXPECT_TRUE(observer->observed());
  EXPECT_EQ(observer->state().at("min_val").item<float>(), -2.0f);
  EXPECT_EQ(observer->state().at("max_val").item<float>(), 1.0f);
}

TEST_P(EveryObserver, EmptyCalibrationIsAnError) {
  const auto observer = make();
  EXPECT_THAT(error_of([&] { observer->calculate_qparams(); }), HasSubstr("nothing was observed (empty calibration)"));
  EXPECT_FALSE(observer->observed());
  observer->observe(at::tensor({kNaN}));
  EXPECT_FALSE(observer->observed());
  EXPECT_THAT(error_of([&] { observer->calculate_qparams(); }), HasSubstr("nothing was observed (empty calibration)"));
}

TEST_P(EveryObserver, AChannelThatSawNothingIsAnError) {
  const auto observer = make(0);
  observer->observe(at::tensor({1.0f, kNaN}).view({2, 1}));
  EXPECT_THAT(error_of([&] { observer->calculate_qparams(); }), HasSubstr("a channel saw no finite value"));
}

TEST_P(EveryObserver, MergesItsOwnShapeOnly) {
  const auto channels = make(0), tensor = make(), others = make(0);
  channels->observe(at::randn({3, 4}));
  tensor->observe(at::randn({3, 4}));
  others->observe(at::randn({5, 4}));
  EXPECT_THAT(error_of([&] { tensor->merge(*channels); }), HasSubstr("other must have the same axis"));
  EXPECT_THAT(error_of([&] { channels->merge(*tensor); }), HasSubstr("other must have the same axis"));
  EXPECT_THAT(error_of([&] { channels->merge(*others); }), HasSubstr("of other must have shape [3"));
  EXPECT_EQ(channels->state().at("min_val").numel(), 3);
}

TEST_P(EveryObserver, StateMovesToAnotherObserver) {
  const auto observer = make(0);
  observer->observe(at::randn({4, 50}));
  const auto copy = make(0);
  copy->load_state(observer->state());
  EXPECT_TRUE(same_state(*copy, *observer));
  const at::Tensor more = at::randn({4, 50}) * 3.0;
  copy->observe(more);
  EXPECT_FALSE(same_state(*copy, *observer));  // a copy, not a view
  observer->observe(more);
  EXPECT_TRUE(same_state(*copy, *observer));
}

TEST_P(EveryObserver, RefusesStateThatIsNotItsOwn) {
  const auto observer = make();
  observer->observe(at::randn({9}));
  auto state = observer->state();
  state["other"] = at::empty({1});
  EXPECT_THAT(error_of([&] { make()->load_state(state); }), HasSubstr("'other' is no state of this observer"));
  state.erase("other");
  state.erase("max_val");
  EXPECT_THAT(error_of([&] { make()->load_state(state); }), HasSubstr("'max_val' is missing"));
}

TEST_P(EveryObserver, MergesInAnyOrder) {
  const auto observe = [&](const at::Tensor& x) {
    auto observer = make();
    observer->observe(x);
    return observer;
  };
  const at::Tensor a = at::randn({100}), b = at::randn({70}) * 10.0, c = at::randn({5}) * 1e-3;
  const auto left = observe(a), right = observe(c);
  left->merge(*observe(b));
  left->merge(*observe(c));
  right->merge(*observe(a));
  right->merge(*make());  // which saw nothing
  right->merge(*observe(b));
  for (const auto& [key, value] : left->state()) {
    EXPECT_TRUE(value.allclose(right->state().at(key), /*rtol=*/1e-5)) << key;
  }
  if (GetParam() != "moving_average") {
    EXPECT_TRUE(same_state(*left, *observe(at::cat(at::TensorList{a, b, c}))));
  }
}

INSTANTIATE_TEST_SUITE_P(Observers, EveryObserver,
                         ::testing::Values("min_max", "moving_average", "percentile", "mse", "entropy"),
                         [](const auto& info) { return info.param; });

TEST(MovingAverageMinMaxObserver, FollowsTheTensors) {
  MovingAverageMinMaxObserver observer({}, 0.25);
  observer.observe(at::tensor({-1.0f, 2.0f}));
  observer.observe(at::tensor({-5.0f, 4.0f}));
  EXPECT_EQ(observer.state().at("min_val").item<float>(), -2.0f);
  EXPECT_EQ(observer.state().at("max_val").item<float>(), 2.5f);
}

TEST(Observer, MergesItsOwnClassOnly) {
  MinMaxObserver a;
  HistogramObserver b;
  EXPECT_THAT(error_of([&] { a.merge(b); }), HasSubstr("other must be of the same class, got HistogramObserver"));
}

TEST(Observer, NamesAWrongAxis) {
  MinMaxObserver observer(ObserverOptions{0, 255, false, 2});
  EXPECT_THAT(error_of([&] { observer.observe(at::randn({2, 3})); }), HasSubstr("axis must name a dimension"));
}

}  // namespace
}  // namespace torchquant::observers
