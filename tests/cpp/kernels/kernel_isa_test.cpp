// Choice of the instruction set: what the machine has is offered, TORCHQUANT_ISA is obeyed, mistakes name what is
// allowed.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdlib>
#include <stdexcept>

#include "kernels/fake_quantize.h"
#include "kernels/isa.h"
#include "support/isas.h"

namespace torchquant::kernels {
namespace {

std::vector<std::string> names(const std::vector<Isa>& isas) {
  std::vector<std::string> result;
  for (Isa isa : isas) result.push_back(isa_name(isa));
  return result;
}

TEST(Isa, OffersWhatThisMachineHas) { EXPECT_EQ(names(available_isas()), test::isas_of_this_machine()); }

TEST(Isa, EveryAvailableOneHasItsOwnKernels) {
  for (Isa a : available_isas()) {
    for (Isa b : available_isas()) {
      EXPECT_EQ(&fake_quantize_kernels(a) == &fake_quantize_kernels(b), a == b) << isa_name(a) << ", " << isa_name(b);
    }
  }
}

TEST(Isa, ForcedOneIsUsed) {
  const Isa before = selected_isa();
  for (Isa isa : available_isas()) {
    force_isa(isa);
    EXPECT_EQ(selected_isa(), isa);
    EXPECT_EQ(&fake_quantize_kernels(), &fake_quantize_kernels(isa));
  }
  force_isa(before);
}

TEST(Isa, ForcingAnUnknownOneIsRefused) {
  EXPECT_THAT([] { force_isa(static_cast<Isa>(99)); },
              ::testing::ThrowsMessage<std::runtime_error>(::testing::HasSubstr("reference")));
}

// The variable is read once per process, so each value needs a process of its own.
int selects(const char* value, const char* expected) {
  setenv("TORCHQUANT_ISA", value, 1);
  try {
    return isa_name(selected_isa()) == std::string(expected) ? 0 : 1;
  } catch (const std::runtime_error& error) {
    std::fputs(error.what(), stderr);
    return 2;
  }
}

class IsaVariable : public ::testing::Test {
 protected:
  void SetUp() override { ::testing::GTEST_FLAG(death_test_style) = "threadsafe"; }
};

TEST_F(IsaVariable, SelectsEachAvailableOne) {
  for (Isa isa : available_isas()) {
    EXPECT_EXIT(std::exit(selects(isa_name(isa), isa_name(isa))), ::testing::ExitedWithCode(0), "") << isa_name(isa);
  }
}

TEST_F(IsaVariable, EmptyMeansTheFastest) {
  EXPECT_EXIT(std::exit(selects("", isa_name(available_isas().back()))), ::testing::ExitedWithCode(0), "");
}

TEST_F(IsaVariable, UnknownValueIsRefusedWithTheAllowedOnes) {
  EXPECT_EXIT(std::exit(selects("sse9", "")), ::testing::ExitedWithCode(2),
              "TORCHQUANT_ISA must be one of reference.* on this processor; got 'sse9'");
}

}  // namespace
}  // namespace torchquant::kernels
