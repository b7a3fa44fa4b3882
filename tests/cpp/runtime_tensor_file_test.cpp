// Tensors on disk: what save_output writes load_inputs reads, and other files are refused by name. That Python's
// torch.save and torch.load speak the same format is tested in test_cpp_examples.py.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>

#include "ATen/ops/arange.h"
#include "ATen/ops/equal.h"
#include "ATen/ops/ones.h"
#include "c10/util/Exception.h"
#include "runtime/tensor_file.h"

namespace torchquant {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;

class TensorFile : public ::testing::Test {
 protected:
  void TearDown() override { std::filesystem::remove(path_); }

  std::string load_error() const {
    try {
      load_inputs(path_);
    } catch (const c10::Error& error) {
      return error.what_without_backtrace();
    }
    return "loaded without an error";
  }

  std::string path_ =
      std::filesystem::temp_directory_path() / ("torchquant-tensor-file-test-" + std::to_string(getpid()));
};

TEST_F(TensorFile, RoundTripOfATensorAndOfATuple) {
  const at::Tensor a = at::arange(6).view({2, 3}), b = at::ones({1}, at::kBool);
  save_output(a, path_);
  EXPECT_TRUE(at::equal(load_inputs(path_).at(0).toTensor(), a));
  save_output(c10::ivalue::Tuple::create({a, b}), path_);
  const auto inputs = load_inputs(path_);
  ASSERT_EQ(inputs.size(), 2u);
  EXPECT_TRUE(at::equal(inputs[0].toTensor(), a));
  EXPECT_TRUE(at::equal(inputs[1].toTensor(), b));
}

TEST_F(TensorFile, RefusesOtherFiles) {
  EXPECT_THAT(load_error(), AllOf(HasSubstr(path_), HasSubstr("No such file or directory")));
  std::ofstream(path_) << "text";
  EXPECT_THAT(load_error(), HasSubstr("is not a file that torch.save wrote"));
  save_output(c10::IValue(3.0), path_);
  const std::string form =
      "it must hold a tensor, a tuple of tensors (the arguments of one call), or a list of such batches";
  EXPECT_THAT(load_error(), HasSubstr("holds a Double; " + form));
  save_output(c10::ivalue::Tuple::create(std::vector<c10::IValue>{}), path_);
  EXPECT_THAT(load_error(), HasSubstr("holds an empty tuple; " + form));
  save_output(c10::List<at::Tensor>(), path_);
  EXPECT_THAT(load_error(), HasSubstr("holds an empty list; " + form));
}

TEST_F(TensorFile, AListIsOfBatchesAndATupleOfArguments) {
  const at::Tensor a = at::arange(6).view({2, 3}), b = at::ones({2});
  c10::impl::GenericList held(c10::AnyType::get());
  held.push_back(a);
  held.push_back(c10::ivalue::Tuple::create({a, b}));
  save_output(held, path_);
  const auto batches = load_batches(path_);
  ASSERT_EQ(batches.size(), 2u);
  EXPECT_EQ(batches[0].size(), 1u);
  EXPECT_EQ(batches[1].size(), 2u);
  EXPECT_TRUE(at::equal(batches[1][1].toTensor(), b));
  EXPECT_THAT(load_error(), HasSubstr("holds a list of 2 batches, and the arguments of one call are wanted"));
  save_output(c10::List<at::Tensor>({a}), path_);
  EXPECT_TRUE(at::equal(load_inputs(path_).at(0).toTensor(), a));
}

TEST_F(TensorFile, SaveNamesWhatItCannotWrite) {
  path_ = "/nowhere/output.pt";
  EXPECT_THROW(save_output(at::ones({1}), path_), c10::Error);
}

}  // namespace
}  // namespace torchquant
