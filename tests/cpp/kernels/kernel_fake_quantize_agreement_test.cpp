// Every instruction set gives the reference's bits: every training kernel, every element type, every length of a run.
#include <gtest/gtest.h>

#include <cstring>
#include <iomanip>
#include <tuple>

#include "kernels/fake_quantize.h"
#include "support/fake_quantize_run.h"
#include "support/isas.h"
#include "support/sizes.h"

namespace torchquant::kernels {
namespace {

using test::KernelCall;
using test::KernelInputs;
using test::KernelOutputs;

constexpr FloatType kTypes[] = {FloatType::kFloat32, FloatType::kBFloat16, FloatType::kFloat16};
constexpr uint8_t kGuard = 0xa5;
constexpr int64_t kGuardElements = 17;

// Elements after the end are filled with a pattern, so that a store past the end shows as a difference.
KernelOutputs run(const KernelCall& call, Isa isa, const KernelInputs& inputs) {
  KernelOutputs outputs;
  outputs.element_size = call.element_size(inputs.type);
  outputs.elements.assign((inputs.n + kGuardElements) * outputs.element_size, kGuard);
  call.run(fake_quantize_kernels(isa), inputs, &outputs);
  return outputs;
}

std::string hex(const uint8_t* bytes, int64_t size) {
  std::ostringstream text;
  for (int64_t i = size - 1; i >= 0; --i) text << std::hex << std::setw(2) << std::setfill('0') << int{bytes[i]};
  return text.str();
}

std::string describe(const KernelInputs& in, int64_t i) {
  if (i >= in.n) return "past the end";
  const int64_t size = test::size_of(in.type);
  return "x = 0x" + hex(&in.x[i * size], size) + ", grad = 0x" + hex(&in.grad[i * size], size) + ", code = 0x" +
         hex(&in.codes[i], 1);
}

::testing::AssertionResult same_elements(const KernelInputs& in, const KernelOutputs& want, const KernelOutputs& got) {
  const int64_t size = want.element_size;
  for (int64_t i = 0; i * size < static_cast<int64_t>(want.elements.size()); ++i) {
    if (memcmp(&want.elements[i * size], &got.elements[i * size], size) != 0) {
      return ::testing::AssertionFailure()
             << "element " << i << " of " << in.n << ": reference 0x" << hex(&want.elements[i * size], size)
             << ", got 0x" << hex(&got.elements[i * size], size) << "; " << describe(in, i);
    }
  }
  return ::testing::AssertionSuccess();
}

// Bit-equal, except that NaN equals NaN: which operand's payload a sum of two NaN keeps is the compiler's choice.
template <typename T>
::testing::AssertionResult same_numbers(const KernelInputs& in, const std::vector<T>& want, const std::vector<T>& got) {
  if (want.size() != got.size()) return ::testing::AssertionFailure() << got.size() << " results, not " << want.size();
  for (size_t i = 0; i < want.size(); ++i) {
    if (want[i] != want[i] && got[i] != got[i]) continue;
    if (memcmp(&want[i], &got[i], sizeof(T)) != 0) {
      return ::testing::AssertionFailure()
             << std::hexfloat << "result " << i << " of " << want.size() << ": reference " << want[i] << ", got "
             << got[i] << "; " << (in.n > 0 ? describe(in, static_cast<int64_t>(i) % in.n) : "no input");
    }
  }
  return ::testing::AssertionSuccess();
}

class FakeQuantizeAgreement : public ::testing::TestWithParam<std::tuple<Isa, KernelCall>> {
 protected:
  void expect_agreement(const KernelInputs& inputs) {
    const auto& [isa, call] = GetParam();
    SCOPED_TRACE(::testing::Message() << test::type_name(inputs.type) << ", n = " << inputs.n << ", " << inputs.params);
    const KernelOutputs want = run(call, Isa::kReference, inputs);
    const KernelOutputs got = run(call, isa, inputs);
    ASSERT_TRUE(same_elements(inputs, want, got));
    ASSERT_TRUE(same_numbers(inputs, want.sums, got.sums));
    ASSERT_TRUE(same_numbers(inputs, want.floats, got.floats));
    ASSERT_EQ(want.count, got.count);
  }
};

TEST_P(FakeQuantizeAgreement, EveryLengthOfARun) {
  uint64_t seed = 1;
  for (FloatType type : kTypes) {
    for (const test::FakeQuantizeCase& params : test::fake_quantize_cases()) {
      for (int64_t n : test::run_lengths()) {
        ASSERT_NO_FATAL_FAILURE(expect_agreement(test::make_kernel_inputs(params, type, n, ++seed)));
      }
    }
  }
}

TEST_P(FakeQuantizeAgreement, AroundAReductionBlock) {
  uint64_t seed = 1000000;
  for (FloatType type : kTypes) {
    for (const test::FakeQuantizeCase& params : test::fake_quantize_cases()) {
      for (int64_t n : test::lengths_around(kReductionBlock)) {
        ASSERT_NO_FATAL_FAILURE(expect_agreement(test::make_kernel_inputs(params, type, n, ++seed)));
      }
    }
  }
}

// Finite values only: one NaN or infinity in a block would hide every difference between two sums.
TEST_P(FakeQuantizeAgreement, SumsOfFiniteValues) {
  const test::FakeQuantizeCase params = {0.02f, 3.0f, {-128, 127}};
  for (FloatType type : kTypes) {
    for (int64_t n : {int64_t{1}, int64_t{15}, int64_t{100}, int64_t{4099}, int64_t{50000}}) {
      KernelInputs inputs = test::make_kernel_inputs(params, type, n, 77);
      inputs.x = test::pack(test::bell_values(n, 1.5f, 5), type);
      inputs.grad = test::pack(test::bell_values(n, 1.0f, 6), type);
      ASSERT_NO_FATAL_FAILURE(expect_agreement(inputs));
    }
  }
}

std::vector<Isa> isas_beside_the_reference() {
  std::vector<Isa> isas = available_isas();
  isas.erase(isas.begin());
  return isas;
}

std::string call_test_name(const ::testing::TestParamInfo<std::tuple<Isa, KernelCall>>& info) {
  return std::string(isa_name(std::get<0>(info.param))) + "_" + std::get<1>(info.param).name;
}

GTEST_ALLOW_UNINSTANTIATED_PARAMETERIZED_TEST(FakeQuantizeAgreement);  // a processor that runs only the reference
INSTANTIATE_TEST_SUITE_P(Isa, FakeQuantizeAgreement,
                         ::testing::Combine(::testing::ValuesIn(isas_beside_the_reference()),
                                            ::testing::ValuesIn(test::kernel_calls())),
                         call_test_name);

// The tests above cover available_isas(); this one fails if that leaves out one that the machine has.
TEST(FakeQuantizeCoverage, EveryInstructionSetOfThisMachineIsTested) {
  std::vector<std::string> tested = {"reference"};
  for (Isa isa : isas_beside_the_reference()) tested.push_back(isa_name(isa));
  EXPECT_EQ(tested, test::isas_of_this_machine());
}

}  // namespace
}  // namespace torchquant::kernels
