// What loads the CUDA half of the library, as far as a machine without a GPU can tell.
#include "ops/cuda_library.h"

#include <c10/util/Exception.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <fstream>

namespace torchquant::ops {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::Not;

TEST(CudaLibrary, IsNotNeededWithoutAGpu) { EXPECT_NO_THROW(load_cuda_library()); }

TEST(CudaLibrary, MayBeAbsentFromABuildForTheCpu) {
  EXPECT_FALSE(load_shared_library("/nowhere/libtorchquant_cuda.so"));
}

TEST(CudaLibrary, SaysInOneSentenceWhyItCannotBeLoaded) {
  const auto path = std::filesystem::temp_directory_path() / ("torchquant-" + std::to_string(getpid()) + ".so");
  std::ofstream(path) << "not a library";
  try {
    load_shared_library(path);
    ADD_FAILURE() << "loaded";
  } catch (const c10::Error& error) {
    EXPECT_THAT(error.what_without_backtrace(),
                AllOf(HasSubstr("torchquant: cannot load " + path.string()), Not(HasSubstr("\n"))));
  }
  std::filesystem::remove(path);
}

}  // namespace
}  // namespace torchquant::ops
