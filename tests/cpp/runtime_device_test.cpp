// What a user is told of a GPU that cannot be used: one clause for each reason, the first in the way.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "runtime/device.h"

namespace torchquant {
namespace {

using testing::HasSubstr;

// Two GPUs like the H100, of which the second is asked for.
GpuFacts usable() { return {true, true, "", 2, 1, 90}; }

TEST(WhyUnusable, NothingIsInTheWayFromAmpereOn) {
  EXPECT_EQ(why_unusable(usable()), "");
  GpuFacts facts = usable();
  facts.capability = 80;
  EXPECT_EQ(why_unusable(facts), "");
}

TEST(WhyUnusable, ABuildWithoutCuda) {
  GpuFacts facts = usable();
  facts.torchquant_has_cuda = false;
  EXPECT_THAT(why_unusable(facts), HasSubstr("this torchquant was built without CUDA; build it where nvcc"));
  facts = usable();
  facts.torch_has_cuda = false;
  EXPECT_EQ(why_unusable(facts), "this torch was built without CUDA");
}

TEST(WhyUnusable, ADriverThatIsTooOldIsSaidInTorchsWords) {
  GpuFacts facts = usable();
  facts.torch_reason = "The NVIDIA driver on your system is too old (found version 11040).";
  EXPECT_EQ(why_unusable(facts), facts.torch_reason);
}

TEST(WhyUnusable, AGpuThatIsNotThere) {
  GpuFacts facts = usable();
  facts.index = 2;
  EXPECT_EQ(why_unusable(facts), "torch sees 2 GPUs, from cuda:0 on");
  facts.gpus = 1;
  EXPECT_EQ(why_unusable(facts), "torch sees 1 GPU, from cuda:0 on");
}

TEST(WhyUnusable, AGpuThatIsTooOld) {
  GpuFacts facts = usable();
  facts.capability = 75;
  EXPECT_EQ(why_unusable(facts), "it is of compute capability 7.5, and the kernels need 8.0 (Ampere) or newer");
}

}  // namespace
}  // namespace torchquant
