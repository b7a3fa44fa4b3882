// The CUDA training kernels, run by the emulation of the device, against the CPU reference kernels: every granularity,
// element type and alignment; ends that fill no access, ties, NaN and infinities.
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <string>
#include <vector>

#include "kernels/cuda/fake_quantize_and_observe.h"
#include "kernels/cuda/histogram_search.h"
#include "kernels/cuda/launch.h"
#include "kernels/fake_quantize.h"
#include "kernels/observe.h"
#include "numerics/histogram_search.h"
#include "support/fake_quantize_cases.h"

namespace torchquant::kernels::cuda {
namespace {

using test::FakeQuantizeCase;
using test::Random;

constexpr float kInf = std::numeric_limits<float>::infinity();
const FloatType kTypes[] = {FloatType::kFloat32, FloatType::kBFloat16, FloatType::kFloat16};

size_t bytes_of(FloatType type) { return type == FloatType::kFloat32 ? 4 : 2; }

// Elements of a type, `offset` of them past an address that is a multiple of 16. Under AddressSanitizer, accesses past
// the end are found.
class Elements {
 public:
  Elements(FloatType type, int64_t n, int64_t offset = 0)
      : type_(type), n_(n), offset_(offset), bytes_(static_cast<size_t>(n + offset) * bytes_of(type)) {}
  Elements(FloatType type, const std::vector<float>& values, int64_t offset = 0)
      : Elements(type, static_cast<int64_t>(values.size()), offset) {
    for (int64_t i = 0; i < n_; ++i) {
      if (type == FloatType::kFloat32) {
        std::memcpy(at(i), &values[static_cast<size_t>(i)], 4);
      } else if (type == FloatType::kBFloat16) {
        const auto narrow = numerics::from_float<numerics::BFloat16>(values[static_cast<size_t>(i)]);
        std::memcpy(at(i), &narrow, 2);
      } else {
        const auto narrow = numerics::from_float<numerics::Float16>(values[static_cast<size_t>(i)]);
        std::memcpy(at(i), &narrow, 2);
      }
    }
  }

  char* at(int64_t i) { return bytes_.data() + static_cast<size_t>(i + offset_) * bytes_of(type_); }
  char* data() { return at(0); }
  float value(int64_t i) {
    float wide = 0.0f;
    uint16_t narrow = 0;
    std::memcpy(&narrow, at(i), 2);
    if (type_ == FloatType::kFloat32) std::memcpy(&wide, at(i), 4);
    if (type_ == FloatType::kBFloat16) wide = numerics::to_float(numerics::BFloat16{narrow});
    if (type_ == FloatType::kFloat16) wide = numerics::to_float(numerics::Float16{narrow});
    return wide;
  }
  int64_t size() const { return n_; }

 private:
  FloatType type_;
  int64_t n_;
  int64_t offset_;
  std::vector<char> bytes_;
};

// The same bits; every NaN counts as the same, because CUDA makes one of them all.
void expect_same(Elements& actual, Elements& expected, const std::string& what) {
  for (int64_t i = 0; i < expected.size(); ++i) {
    const float a = actual.value(i);
    const float e = expected.value(i);
    if (std::isnan(a) && std::isnan(e)) continue;
    ASSERT_EQ(numerics::float_to_bits(a), numerics::float_to_bits(e))
        << what << ", element " << i << ": " << a << ", " << e;
  }
}

std::string name_of(const ParamLayout& l) {
  return "[" + std::to_string(l.outer) + ", " + std::to_string(l.axis_size) + ", " + std::to_string(l.inner) +
         "] in groups of " + std::to_string(l.group_size);
}

// Per tensor, per channel on the first, a middle and the last axis, grouped on the last and on an inner axis; extents
// that fill no access, exactly some, and more than a block.
std::vector<ParamLayout> layouts() {
  std::vector<ParamLayout> all;
  for (int64_t n : {1, 3, 4, 8, 13, 64, 1024, 5003}) all.push_back(ParamLayout::per_tensor(n));
  all.insert(all.end(), {{1, 5, 24, 0},
                         {1, 3, 2100, 0},
                         {2, 3, 49, 0},
                         {3, 5, 16, 0},
                         {4, 3, 1, 0},
                         {37, 12, 1, 0},
                         {70, 5, 1, 0},
                         {1, 7, 1, 0},
                         {2, 70, 33, 0},
                         {1, 65, 64, 0},
                         {1, 64, 9, 0},
                         {2, 6, 1, 3},
                         {3, 64, 1, 32},
                         {2, 5, 1, 5},
                         {5, 4097, 1, 4097},
                         {2, 6, 4, 3},
                         {1, 8, 130, 4},
                         {2, 12, 5, 6}});
  return all;
}

struct Params {
  std::vector<float> scale;
  std::vector<float> zero_point;
  std::vector<float> scale_grad;
  std::vector<float> zero_point_grad;

  Params(int64_t count, const FakeQuantizeCase& c)
      : scale(static_cast<size_t>(count)),
        zero_point(static_cast<size_t>(count)),
        scale_grad(static_cast<size_t>(count)),
        zero_point_grad(static_cast<size_t>(count)) {
    for (size_t p = 0; p < scale.size(); ++p) {
      scale[p] = c.scale * (1.0f + 0.125f * static_cast<float>(p % 7));
      zero_point[p] = c.zero_point - static_cast<float>(p % 2) * 0.75f;  // fractions are rounded, both ends clamped
    }
  }
  DeviceQParams device() const { return {scale.data(), zero_point.data()}; }
  QParams of(int64_t p, QRange range) const {
    return numerics::make_qparams(scale[static_cast<size_t>(p)], zero_point[static_cast<size_t>(p)], range);
  }
};

// A cheaper set than the CPU tests': the arithmetic is theirs, the indices are what differs.
std::vector<FakeQuantizeCase> cases() {
  return {{0.0437f, 101.0f, {0, 255}}, {0.7f, -3.0f, {-8, 7}}, {3e38f, 5.0f, {0, 255}}};
}

// Calls body(layout, type, case, elements by which x is misaligned): every case in fp32, one in the other types.
template <typename Body>
void for_each_setting(const Body& body) {
  for (const ParamLayout& layout : layouts()) {
    for (const FakeQuantizeCase& c : cases()) body(layout, FloatType::kFloat32, c, 0);
    body(layout, FloatType::kBFloat16, cases()[0], 0);
    body(layout, FloatType::kFloat16, cases()[1], 0);
    body(layout, FloatType::kBFloat16, cases()[0], 1);
  }
}

const FakeQuantizeKernels& reference() { return fake_quantize_kernels(Isa::kReference); }

TEST(CudaFakeQuantize, GivesTheReferencesBits) {
  for_each_setting([](const ParamLayout& layout, FloatType type, const FakeQuantizeCase& c, int64_t offset) {
    const int64_t n = layout.numel();
    const Params params(layout.params(), c);
    Elements x(type, test::fake_quantize_values(c, n, 1), offset);
    Elements actual(type, n), expected(type, n);
    ASSERT_EQ(fake_quantize(x.data(), actual.data(), type, layout, params.device(), c.range, nullptr), cudaSuccess);
    for (int64_t e = 0; e < n; ++e)
      reference().fake_quantize_run(x.at(e), expected.at(e), 1, type, params.of(layout.param_of(e), c.range), c.range);
    expect_same(actual, expected, name_of(layout));
  });
}

TEST(CudaFakeQuantize, BackwardGivesTheReferencesBits) {
  for_each_setting([](const ParamLayout& layout, FloatType type, const FakeQuantizeCase& c, int64_t offset) {
    const int64_t n = layout.numel();
    const Params params(layout.params(), c);
    Elements x(type, test::fake_quantize_values(c, n, 2));
    Elements grad(type, test::bell_values(n, 1.0f, 3), offset);
    Elements actual(type, n), expected(type, n);
    ASSERT_EQ(
        fake_quantize_backward(grad.data(), x.data(), actual.data(), type, layout, params.device(), c.range, nullptr),
        cudaSuccess);
    for (int64_t e = 0; e < n; ++e)
      reference().backward_run(grad.at(e), x.at(e), expected.at(e), 1, type, params.of(layout.param_of(e), c.range),
                               c.range);
    expect_same(actual, expected, name_of(layout));
  });
}

TEST(CudaFakeQuantize, QuantizeAndDequantizeGiveTheReferencesBits) {
  for_each_setting([](const ParamLayout& layout, FloatType type, const FakeQuantizeCase& c, int64_t offset) {
    const int64_t n = layout.numel();
    const bool is_signed = c.range.quant_min < 0;
    const Params params(layout.params(), c);
    Elements x(type, test::fake_quantize_values(c, n, 4), offset);
    std::vector<uint8_t> codes(static_cast<size_t>(n)), expected_codes(codes);
    ASSERT_EQ(quantize(x.data(), codes.data(), type, layout, params.device(), c.range, nullptr), cudaSuccess);
    Elements actual(type, n), expected(type, n);
    ASSERT_EQ(dequantize(codes.data(), actual.data(), is_signed, type, layout, params.device(), nullptr), cudaSuccess);
    const QRange codes_range = is_signed ? QRange{-128, 127} : QRange{0, 255};
    for (int64_t e = 0; e < n; ++e) {
      uint8_t* code = &expected_codes[static_cast<size_t>(e)];
      const int64_t p = layout.param_of(e);
      reference().quantize_run(x.at(e), code, 1, type, params.of(p, c.range), c.range);
      reference().dequantize_run(code, expected.at(e), 1, is_signed, type, params.of(p, codes_range));
    }
    ASSERT_EQ(codes, expected_codes) << name_of(layout);
    expect_same(actual, expected, name_of(layout));
  });
}

// 0xff in scratch shows whatever is read before it is written; the counters have to be zeroed by the launcher.
std::vector<double> dirty_scratch(const ParamLayout& layout) {
  const size_t bytes = reduction_scratch_bytes(layout);
  std::vector<double> scratch(bytes / sizeof(double) + 1);
  std::memset(scratch.data(), 0xff, scratch.size() * sizeof(double));
  return scratch;
}

void expect_learnable(const ParamLayout& layout, FloatType type, const FakeQuantizeCase& c, int64_t offset) {
  const int64_t n = layout.numel();
  const float factor = 0.25f;
  Params params(layout.params(), c);
  std::vector<float> values = test::fake_quantize_values(c, n, 5);
  for (float& v : values) v = std::isfinite(v) ? v : 0.5f * c.scale;
  Elements x(type, values, offset), grad(type, test::bell_values(n, 1.0f, 6));
  Elements actual(type, n), expected(type, n);
  std::vector<double> scratch = dirty_scratch(layout);
  ASSERT_EQ(fake_quantize_learnable_backward(grad.data(), x.data(), actual.data(), params.scale_grad.data(),
                                             params.zero_point_grad.data(), type, layout, params.device(), c.range,
                                             factor, scratch.data(), nullptr),
            cudaSuccess);
  std::vector<QParamGrads> sums(params.scale.size()), magnitudes(params.scale.size());
  for (int64_t e = 0; e < n; ++e) {
    const int64_t p = layout.param_of(e);
    const QParamGrads one = reference().learnable_backward_run(grad.at(e), x.at(e), expected.at(e), 1, type,
                                                               params.of(p, c.range), c.range);
    sums[static_cast<size_t>(p)].scale += one.scale;
    sums[static_cast<size_t>(p)].zero_point += one.zero_point;
    magnitudes[static_cast<size_t>(p)].scale += std::abs(one.scale);
    magnitudes[static_cast<size_t>(p)].zero_point += std::abs(one.zero_point);
  }
  expect_same(actual, expected, name_of(layout));
  for (size_t p = 0; p < sums.size(); ++p) {  // of up to eight terms in fp32, the rest in fp64
    ASSERT_NEAR(params.scale_grad[p], factor * sums[p].scale, 1e-6 * magnitudes[p].scale) << name_of(layout);
    ASSERT_NEAR(params.zero_point_grad[p], factor * sums[p].zero_point, 1e-6 * magnitudes[p].zero_point)
        << name_of(layout);
  }
}

TEST(CudaLearnableBackward, GivesTheReferencesBitsAndItsSums) {
  for (const ParamLayout& layout : layouts()) {
    for (const FloatType type : kTypes) expect_learnable(layout, type, cases()[0], 0);
    expect_learnable(layout, FloatType::kFloat32, cases()[1], 1);
  }
}

// Large enough that several blocks share a parameter, along a run and across columns.
TEST(CudaLearnableBackward, SumsOfManyBlocksAreThoseOfOne) {
  const FakeQuantizeCase c = cases()[0];
  for (const ParamLayout& layout : {ParamLayout::per_tensor(60001), ParamLayout{3, 2, 20003, 0},
                                    ParamLayout{6000, 5, 1, 0}, ParamLayout{1, 4096, 8, 2048}})
    expect_learnable(layout, FloatType::kBFloat16, c, 0);
}

struct Observation {
  std::vector<float> min_val;
  std::vector<float> max_val;
  int64_t nonfinite = 3;

  explicit Observation(int64_t params)
      : min_val(static_cast<size_t>(params), kInf), max_val(static_cast<size_t>(params), -kInf) {}
  ObserverState device() { return {min_val.data(), max_val.data(), &nonfinite}; }
  bool operator==(const Observation&) const = default;
};

// What the running state becomes after x; averaging_constant < 0 keeps extremes.
Observation observed(Elements& x, FloatType type, const ParamLayout& layout, float averaging_constant,
                     Observation state) {
  Observation batch(layout.params());
  for (int64_t e = 0; e < layout.numel(); ++e) {
    const auto p = static_cast<size_t>(layout.param_of(e));
    state.nonfinite += reference().min_max_each(x.at(e), 1, type, &batch.min_val[p], &batch.max_val[p]);
  }
  for (size_t p = 0; p < batch.min_val.size(); ++p) {
    const numerics::Range running{state.min_val[p], state.max_val[p]};
    const numerics::Range seen{batch.min_val[p], batch.max_val[p]};
    const numerics::Range next = averaging_constant < 0.0f
                                     ? numerics::merge_ranges(running, seen)
                                     : numerics::moving_average(running, seen, averaging_constant);
    state.min_val[p] = next.min_val;
    state.max_val[p] = next.max_val;
  }
  return state;
}

void expect_observed(const ParamLayout& layout, FloatType type, const FakeQuantizeCase& c, int64_t offset) {
  std::vector<double> scratch = dirty_scratch(layout);
  Observation extremes(layout.params()), average(layout.params());
  for (uint64_t seed : {7u, 8u}) {  // the second moves a range that the first has set
    Elements x(type, test::fake_quantize_values(c, layout.numel(), seed), offset);
    const Observation wider = observed(x, type, layout, -1.0f, extremes);
    const Observation moved = observed(x, type, layout, 0.25f, average);
    ASSERT_EQ(observe_min_max(x.data(), type, layout, extremes.device(), scratch.data(), nullptr), cudaSuccess);
    ASSERT_EQ(observe_moving_average(x.data(), type, layout, average.device(), 0.25f, scratch.data(), nullptr),
              cudaSuccess);
    ASSERT_TRUE(extremes == wider) << name_of(layout);
    ASSERT_TRUE(average == moved) << name_of(layout);
  }
}

TEST(CudaObserve, RangesAndCountsAreTheReferences) {
  for (const ParamLayout& layout : layouts()) {
    expect_observed(layout, FloatType::kFloat32, cases()[2], 0);
    expect_observed(layout, FloatType::kBFloat16, cases()[0], 1);
    expect_observed(layout, FloatType::kFloat16, cases()[1], 0);
  }
}

TEST(CudaObserveFakeQuantize, IsTheReferencesObserveChooseAndFakeQuantize) {
  std::vector<ParamLayout> all = layouts();
  all.insert(all.end(), {{2, 64, 10, 0}, {1, 64, 17000, 0}});  // the second is too long to be kept: it is read again
  for (const ParamLayout& layout : all) {
    if (layout.group_size > 0) continue;  // the op has no groups
    for (const FloatType type : kTypes) {
      for (const int64_t offset : {0, 1}) {
        if (layout.numel() > 100000 && (offset > 0 || type != FloatType::kFloat32)) continue;
        const FakeQuantizeCase c = cases()[0];
        const int64_t n = layout.numel();
        Elements x(type, test::fake_quantize_values(c, n, 9), offset);
        Elements actual(type, n), expected(type, n);
        Observation state(layout.params());
        const Observation next = observed(x, type, layout, 0.5f, state);
        Params params(layout.params(), c);
        std::vector<double> scratch = dirty_scratch(layout);
        ASSERT_EQ(observe_fake_quantize(x.data(), actual.data(), type, layout, state.device(), 0.5f, false, c.range,
                                        params.scale.data(), params.zero_point.data(), scratch.data(), nullptr),
                  cudaSuccess);
        ASSERT_TRUE(state == next) << name_of(layout);
        for (size_t p = 0; p < params.scale.size(); ++p) {
          const auto chosen = numerics::choose_qparams(next.min_val[p], next.max_val[p], false, c.range);
          ASSERT_EQ(params.scale[p], chosen.scale);
          ASSERT_EQ(params.zero_point[p], chosen.zero_point);
        }
        for (int64_t e = 0; e < n; ++e)
          reference().fake_quantize_run(x.at(e), expected.at(e), 1, type, params.of(layout.param_of(e), c.range),
                                        c.range);
        expect_same(actual, expected, name_of(layout));
      }
    }
  }
}

// Lengths that fill no access, a warp's share, several blocks; y by the given scale, the range as observed before.
void expect_one_pass(int64_t n, FloatType type, int64_t offset) {
  const FakeQuantizeCase c = cases()[0];
  const ParamLayout layout = ParamLayout::per_tensor(n);
  Observation state(1);
  for (uint64_t seed : {14u, 15u}) {  // the second moves a range that the first has set
    Elements x(type, test::fake_quantize_values(c, n, seed), offset);
    Elements actual(type, n), expected(type, n);
    const Params params(1, c);
    const Observation next = observed(x, type, layout, 0.25f, state);
    std::vector<double> scratch = dirty_scratch(layout);
    ASSERT_EQ(fake_quantize_and_observe(x.data(), actual.data(), type, n, params.device(), c.range, state.device(),
                                        0.25f, scratch.data(), nullptr),
              cudaSuccess);
    ASSERT_TRUE(state == next) << n << " elements";
    reference().fake_quantize_run(x.data(), expected.data(), n, type, params.of(0, c.range), c.range);
    expect_same(actual, expected, std::to_string(n) + " elements");
  }
}

TEST(CudaFakeQuantizeAndObserve, QuantizesWithTheScaleGivenAndMovesTheRange) {
  for (const int64_t n : {1, 3, 8, 257, 2100, 60001}) {
    for (const FloatType type : kTypes) {
      expect_one_pass(n, type, 0);
      expect_one_pass(n, type, 1);
    }
  }
}

TEST(CudaFakeQuantizeAndObserve, NoElementsChangeNothing) {
  Observation state(1);
  const Observation before = state;
  const float scale = 1.0f;
  ASSERT_EQ(fake_quantize_and_observe(nullptr, nullptr, FloatType::kFloat32, 0, {&scale, &scale}, {0, 255},
                                      state.device(), 0.5f, nullptr, nullptr),
            cudaSuccess);
  EXPECT_TRUE(state == before);
}

TEST(CudaHistogram, CountsAreThoseOfOnePassWhateverTheBatches) {
  for (const int32_t bins : {16, 2048, 40000}) {  // in several sets of shared bins, in four, in global memory
    constexpr int64_t kChannels = 3;
    const auto size = static_cast<size_t>(kChannels * bins);
    std::vector<int64_t> counts(size), moving(size), expected(size);
    Observation running(kChannels);
    std::vector<std::vector<float>> all(kChannels);
    for (const float spread : {1.0f, 0.01f, 30.0f}) {
      constexpr int64_t kLength = 9001;
      std::vector<float> x = test::bell_values(kChannels * kLength, spread, 10);
      x[5] = kInf;
      x[kLength] = std::numeric_limits<float>::quiet_NaN();
      Observation batch(kChannels);
      for (int64_t e = 0; e < kChannels * kLength; ++e) {
        const auto p = static_cast<size_t>(e / kLength);
        reference().min_max_each(&x[static_cast<size_t>(e)], 1, FloatType::kFloat32, &batch.min_val[p],
                                 &batch.max_val[p]);
        if (std::isfinite(x[static_cast<size_t>(e)])) all[p].push_back(x[static_cast<size_t>(e)]);
      }
      const Histogram state{counts.data(), running.min_val.data(), running.max_val.data(), kChannels, bins};
      ASSERT_EQ(observe_histogram(x.data(), kLength, state, batch.min_val.data(), batch.max_val.data(), moving.data(),
                                  nullptr),
                cudaSuccess);
    }
    for (size_t p = 0; p < all.size(); ++p) {
      const auto grid = numerics::histogram_grid({running.min_val[p], running.max_val[p]}, bins);
      count_into_bins(all[p].data(), static_cast<int64_t>(all[p].size()), grid,
                      expected.data() + static_cast<int64_t>(p) * bins);
    }
    EXPECT_EQ(counts, expected) << bins << " bins";
  }
}

// Channels of several shapes: bell, one-sided, outliers, one value, zeros alone, nothing seen.
struct Histograms {
  int32_t bins;
  std::vector<int64_t> counts;
  std::vector<float> min_val;
  std::vector<float> max_val;

  explicit Histograms(int32_t bin_count) : bins(bin_count) {
    std::vector<std::vector<float>> channels(6);
    channels[0] = test::bell_values(3000, 1.0f, 11);
    for (float v : test::bell_values(3000, 2.0f, 12)) channels[1].push_back(std::fmax(v, 0.0f));
    channels[2] = test::bell_values(2000, 0.5f, 13);
    channels[2].push_back(40.0f);
    channels[3] = {-0.375f};
    channels[4] = {0.0f, 0.0f};
    for (const auto& values : channels) {
      numerics::Range range{kInf, -kInf};
      for (float v : values) range = numerics::merge_ranges(range, {v, v});
      min_val.push_back(range.min_val);
      max_val.push_back(range.max_val);
      counts.resize(counts.size() + static_cast<size_t>(bins));
      count_into_bins(values.data(), static_cast<int64_t>(values.size()), numerics::histogram_grid(range, bins),
                      counts.data() + counts.size() - static_cast<size_t>(bins));
    }
  }
  int64_t channels() const { return static_cast<int64_t>(min_val.size()); }
  numerics::Histogram channel(size_t c) const {
    const numerics::Range range{min_val[c], max_val[c]};
    return {counts.data() + c * static_cast<size_t>(bins), range, numerics::histogram_grid(range, bins)};
  }
};

numerics::Range host_search(HistogramSearch search, const numerics::Histogram& h, bool symmetric, QRange codes) {
  std::vector<numerics::Moments> moments(static_cast<size_t>(h.grid.bins) + 1);
  std::vector<numerics::EntropySums> sums(static_cast<size_t>(h.grid.bins) + 1);
  if (search == HistogramSearch::kPercentile) return numerics::percentile_range(h, 99.0, symmetric);
  return search == HistogramSearch::kMse ? numerics::mse_range(h, symmetric, codes, moments.data())
                                         : numerics::entropy_range(h, symmetric, codes, sums.data());
}

void expect_host_bits(Histograms& state, HistogramSearch search, bool symmetric, QRange codes) {
  const Histogram device{state.counts.data(), state.min_val.data(), state.max_val.data(), state.channels(), state.bins};
  std::vector<double> scratch(histogram_search_scratch_bytes(search, state.channels(), state.bins) / 8 + 1, NAN);
  std::vector<float> scale(state.min_val.size()), zero_point(state.min_val.size());
  ASSERT_EQ(qparams_from_histogram(search, device, 99.0, symmetric, codes, scale.data(), zero_point.data(),
                                   scratch.data(), nullptr),
            cudaSuccess);
  for (size_t c = 0; c < scale.size(); ++c) {
    const numerics::Range range = host_search(search, state.channel(c), symmetric, codes);
    const auto chosen = numerics::choose_qparams(range.min_val, range.max_val, symmetric, codes);
    EXPECT_EQ(scale[c], chosen.scale) << static_cast<int>(search) << ", channel " << c;
    EXPECT_EQ(zero_point[c], chosen.zero_point) << static_cast<int>(search) << ", channel " << c;
  }
}

TEST(CudaHistogramSearch, EverySearchGivesTheHostsBits) {
  Histograms state(2048);
  for (const auto search : {HistogramSearch::kPercentile, HistogramSearch::kMse, HistogramSearch::kEntropy}) {
    for (const QRange codes : {QRange{0, 255}, QRange{-7, 7}}) {
      for (const bool symmetric : {false, true}) expect_host_bits(state, search, symmetric, codes);
    }
  }
}

// So many bins that there is scratch for fewer blocks than channels, which then take turns.
TEST(CudaHistogramSearch, ScratchIsBoundedAndChannelsTakeTurns) {
  constexpr size_t kMost = size_t{64} << 20;
  Histograms state(1 << 20);
  for (const auto search : {HistogramSearch::kMse, HistogramSearch::kEntropy}) {
    const size_t of_one = histogram_search_scratch_bytes(search, 1, state.bins);
    EXPECT_LT(histogram_search_scratch_bytes(search, state.channels(), state.bins),
              static_cast<size_t>(state.channels()) * of_one);
    EXPECT_LE(histogram_search_scratch_bytes(search, 1 << 20, state.bins), kMost);
    EXPECT_LE(histogram_search_scratch_bytes(search, 1 << 20, 4096), kMost);
    expect_host_bits(state, search, false, {-7, 7});
  }
}

}  // namespace
}  // namespace torchquant::kernels::cuda
