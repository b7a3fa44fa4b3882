// A fake-quantize behind a ReLU: every instruction set against the reference, bit by bit, and the reference against the
// gradients of the two, one after the other.
#include "kernels/relu_fake_quantize.h"

#include <gtest/gtest.h>

#include <vector>

#include "support/fake_quantize_run.h"
#include "support/isas.h"
#include "support/sizes.h"

namespace torchquant::kernels {
namespace {

using test::FakeQuantizeCase;

constexpr uint8_t kGuard = 0xa5;

// What a ReLU could have returned, and a few values that it could not.
std::vector<float> relu_results(const FakeQuantizeCase& c, int64_t n, uint64_t seed) {
  std::vector<float> values = test::fake_quantize_values(c, n, seed);
  for (size_t i = 0; i < values.size(); ++i) {
    if (i % 3 != 0 && values[i] < 0.0f) values[i] = 0.0f;
  }
  return values;
}

// Outputs of both directions, with what lies beyond their ends.
struct Outputs {
  std::vector<uint8_t> y, grad_x;
  std::vector<uint16_t> passes;
  bool operator==(const Outputs&) const = default;
};

Outputs run(Isa isa, const FakeQuantizeCase& c, FloatType type, int64_t n, uint64_t seed) {
  const int64_t size = test::size_of(type);
  const std::vector<uint8_t> x = test::pack(relu_results(c, n, seed), type);
  const std::vector<uint8_t> grad = test::pack(test::bell_values(n, 1.0f, seed + 1), type);
  Outputs out{std::vector<uint8_t>((n + 17) * size, kGuard), std::vector<uint8_t>((n + 17) * size, kGuard),
              std::vector<uint16_t>((n + 15) / 16 + 2, 0xa5a5)};
  const ReluFakeQuantizeKernels& kernels = relu_fake_quantize_kernels(isa);
  kernels.forward(x.data(), out.y.data(), out.passes.data(), n, type, c.qparams(), c.range);
  kernels.backward(grad.data(), out.passes.data(), out.grad_x.data(), n, type);
  return out;
}

class ReluFakeQuantize : public ::testing::TestWithParam<Isa> {};

TEST_P(ReluFakeQuantize, GivesTheReferencesBits) {
  uint64_t seed = 1;
  for (const FloatType type : {FloatType::kFloat32, FloatType::kBFloat16, FloatType::kFloat16}) {
    for (const FakeQuantizeCase& c : test::fake_quantize_cases()) {
      for (const int64_t n : test::run_lengths()) {
        ++seed;
        ASSERT_TRUE(run(GetParam(), c, type, n, seed) == run(Isa::kReference, c, type, n, seed))
            << test::type_name(type) << ", n = " << n << ", " << c;
      }
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Isas, ReluFakeQuantize, ::testing::ValuesIn(available_isas()), test::isa_test_name);

TEST(ReluFakeQuantizeReference, IsFakeQuantizeAndOneGradientAfterTheOther) {
  constexpr int64_t kCount = 500;
  for (const FakeQuantizeCase& c : test::fake_quantize_cases()) {
    const std::vector<float> x = relu_results(c, kCount, 7);
    const std::vector<float> grad = test::bell_values(kCount, 1.0f, 8);
    std::vector<float> y(kCount), grad_x(kCount), expected_y(kCount), expected_grad(kCount);
    std::vector<uint16_t> passes(kCount / 16 + 1);
    const ReluFakeQuantizeKernels& kernels = relu_fake_quantize_kernels(Isa::kReference);
    kernels.forward(x.data(), y.data(), passes.data(), kCount, FloatType::kFloat32, c.qparams(), c.range);
    kernels.backward(grad.data(), passes.data(), grad_x.data(), kCount, FloatType::kFloat32);
    const FakeQuantizeKernels& plain = fake_quantize_kernels(Isa::kReference);
    plain.fake_quantize_run(x.data(), expected_y.data(), kCount, FloatType::kFloat32, c.qparams(), c.range);
    plain.backward_run(grad.data(), x.data(), expected_grad.data(), kCount, FloatType::kFloat32, c.qparams(), c.range);
    EXPECT_EQ(memcmp(y.data(), expected_y.data(), kCount * sizeof(float)), 0) << c;
    for (int64_t i = 0; i < kCount; ++i) {
      if (x[i] <= 0.0f) expected_grad[i] = 0.0f;  // aten::threshold_backward
      EXPECT_EQ(grad_x[i], expected_grad[i]) << x[i] << ", " << c;
    }
  }
}

TEST(ReluFakeQuantizeReference, WhatRoundsToZeroPassesAndZeroDoesNot) {
  const FakeQuantizeCase c{0.5f, 0.0f, {0, 255}};
  const std::vector<float> x = {0.0f, 0.1f, 127.7f, 128.0f};
  std::vector<float> y(x.size());
  uint16_t passes = 0xffff;
  relu_fake_quantize_kernels(Isa::kReference)
      .forward(x.data(), y.data(), &passes, static_cast<int64_t>(x.size()), FloatType::kFloat32, c.qparams(), c.range);
  EXPECT_EQ(y, (std::vector<float>{0.0f, 0.0f, 127.5f, 127.5f}));
  EXPECT_EQ(passes, 0b0110);
}

}  // namespace
}  // namespace torchquant::kernels
