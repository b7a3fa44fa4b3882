// The saved file: what save() writes, what load() and read_receipt() refuse, and that a failed save loses nothing.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/resource.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <limits>
#include <nlohmann/json.hpp>

#include "ATen/ops/equal.h"
#include "ATen/ops/full.h"
#include "ATen/ops/mul.h"
#include "ATen/ops/ones.h"
#include "archive/archive.h"
#include "archive/sha256.h"
#include "caffe2/serialize/inline_container.h"
#include "runtime/load.h"
#include "torch/csrc/jit/frontend/resolver.h"
#include "torch/csrc/jit/frontend/sugared_value.h"
#include "torch/csrc/jit/serialization/import.h"
#include "torch/library.h"

namespace torchquant {
namespace {

namespace fs = std::filesystem;
using caffe2::serialize::PyTorchStreamReader;
using caffe2::serialize::PyTorchStreamWriter;
using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::Not;

// An op with stored parameters, so that this test needs no op of the library.
TORCH_LIBRARY_FRAGMENT(torchquant, m) {
  m.def("archive_test_op(Tensor x, Tensor scale, float output_scale, float[] activation_args) -> Tensor",
        [](const at::Tensor& x, const at::Tensor& scale, double, at::ArrayRef<double>) { return at::mul(x, scale); });
}

// Lets TorchScript source text call `torchquant.archive_test_op`.
struct OpResolver : torch::jit::Resolver {
  std::shared_ptr<torch::jit::SugaredValue> resolveValue(const std::string& name, torch::jit::GraphFunction&,
                                                         const torch::jit::SourceRange&) override {
    return name == "torchquant" ? std::make_shared<torch::jit::BuiltinModule>(name) : nullptr;
  }
};

constexpr auto kInfinity = std::numeric_limits<float>::infinity();

class ArchiveFile : public ::testing::Test {
 protected:
  void SetUp() override {
    directory_ = fs::temp_directory_path() / ("torchquant-archive-test-" + std::to_string(getpid()));
    fs::create_directories(directory_);
    path_ = (directory_ / "model.pt").string();
  }
  void TearDown() override { fs::remove_all(directory_); }

  static torch::jit::Module make_module(float scale = 0.5f, const std::string& output_scale = "0.25") {
    torch::jit::Module module("Net");
    module.register_attribute("training", c10::BoolType::get(), true);
    module.register_buffer("scale", at::full({3}, scale));
    module.register_buffer("mask", at::full({1}, -kInfinity));  // no argument of a torchquant op: may be infinite
    module.define("def forward(self, x):\n  return torchquant.archive_test_op(x, self.scale, " + output_scale +
                      ", [0.0, float('inf')])\n",
                  std::make_shared<OpResolver>());
    return module;
  }

  static Receipt make_receipt() {
    Receipt receipt;
    receipt.rows.push_back({"conv", "conv2d", "int8", "quantized_conv/reference", "", {"batch_norm", "relu"}, {"in"}, "out"});
    receipt.rows.push_back({"head", "linear", "float", "", "its \"weight\" is not constant", {}, {}, ""});
    return receipt;
  }

  void save_module(const torch::jit::Module& module) { save(module, make_receipt(), path_); }

  std::string bytes() const {
    std::ifstream file(path_, std::ios::binary);
    return {std::istreambuf_iterator<char>(file), {}};
  }
  void write_bytes(const std::string& bytes) const { std::ofstream(path_, std::ios::binary) << bytes; }

  // Writes the file anew with `change` applied to its records.
  void rewrite(const std::function<void(std::map<std::string, std::string>&)>& change) const {
    std::map<std::string, std::string> records;
    {
      PyTorchStreamReader reader(path_);
      for (const auto& name : reader.getAllRecords()) {
        const auto [data, size] = reader.getRecord(name);
        records[name] = std::string(static_cast<const char*>(data.get()), size);
      }
    }
    change(records);
    PyTorchStreamWriter writer(path_);
    for (const auto& [name, content] : records) writer.writeRecord(name, content.data(), content.size());
    writer.writeEndOfFile();
  }

  std::string load_error() const {
    try {
      load(path_);
    } catch (const c10::Error& error) {
      return error.what_without_backtrace();
    }
    return "loaded without an error";
  }

  fs::path directory_;
  std::string path_;
};

TEST_F(ArchiveFile, RoundTrip) {
  save_module(make_module());
  auto module = load(path_);
  EXPECT_TRUE(at::equal(module.forward({at::ones({2, 3})}).toTensor(), at::full({2, 3}, 0.5)));
  EXPECT_FALSE(module.is_training());
  EXPECT_EQ(read_receipt(path_).to_json(), make_receipt().to_json());
}

TEST_F(ArchiveFile, IsAnOrdinaryTorchScriptFile) {
  save_module(make_module());
  auto module = torch::jit::load(path_);
  EXPECT_TRUE(at::equal(module.forward({at::ones({2, 3})}).toTensor(), at::full({2, 3}, 0.5)));
}

TEST_F(ArchiveFile, HoldsNoDebugRecordsAndSavesReproducibly) {
  const auto module = make_module();
  save_module(module);
  const std::string first = bytes();
  PyTorchStreamReader reader(path_);
  for (const auto& name : reader.getAllRecords()) EXPECT_THAT(name, Not(::testing::EndsWith(".debug_pkl")));
  save_module(module);
  EXPECT_EQ(bytes(), first);
}

TEST_F(ArchiveFile, RefusesWhatIsNoFile) {
  EXPECT_THAT(load_error(), AllOf(HasSubstr(path_), HasSubstr("No such file or directory")));
  fs::create_directory(path_);
  EXPECT_THAT(load_error(), HasSubstr("it is a directory"));
}

TEST_F(ArchiveFile, RefusesWhatIsNoZip) {
  write_bytes("");
  EXPECT_THAT(load_error(), HasSubstr("it is truncated or empty"));
  write_bytes("not a model at all");
  EXPECT_THAT(load_error(), HasSubstr("it is not a TorchScript archive"));
}

TEST_F(ArchiveFile, RefusesEveryTruncation) {
  save_module(make_module());
  const std::string whole = bytes();
  for (size_t size = 4; size < whole.size(); size += 97) {
    write_bytes(whole.substr(0, size));
    ASSERT_THAT(load_error(), HasSubstr("it is truncated or damaged")) << "cut to " << size << " of " << whole.size();
  }
}

TEST_F(ArchiveFile, RefusesForeignTorchScript) {
  make_module().save(path_);
  EXPECT_THAT(load_error(), AllOf(HasSubstr("it is not a TorchQuant file"), HasSubstr("QuantizedModel.save")));
  EXPECT_THROW(read_receipt(path_), c10::Error);
}

TEST_F(ArchiveFile, RefusesAnotherFormatVersion) {
  save_module(make_module());
  rewrite([](auto& records) {
    auto manifest = nlohmann::json::parse(records["extra/torchquant.json"]);
    manifest["format_version"] = 7;
    manifest["torchquant_version"] = "9.8.7";
    records["extra/torchquant.json"] = manifest.dump();
  });
  EXPECT_THAT(load_error(), AllOf(HasSubstr("format version is 7"), HasSubstr("9.8.7"), HasSubstr("reads version 1")));
}

TEST_F(ArchiveFile, NamesTheRecordThatDiffers) {
  save_module(make_module());
  rewrite([](auto& records) { records["data/0"][0] ^= 1; });
  EXPECT_THAT(load_error(), HasSubstr("record 'data/0' does not match its SHA-256"));
}

TEST_F(ArchiveFile, RefusesMissingAndAddedRecords) {
  save_module(make_module());
  rewrite([](auto& records) { records["extra/more.txt"] = "x"; });
  EXPECT_THAT(load_error(), HasSubstr("record 'extra/more.txt' was added"));
  save_module(make_module());
  rewrite([](auto& records) { records.erase("data/0"); });
  EXPECT_THAT(load_error(), HasSubstr("record 'data/0' is missing"));
}

TEST_F(ArchiveFile, RefusesAnAlteredReceipt) {
  save_module(make_module());
  rewrite([](auto& records) {
    std::string& text = records["extra/torchquant.json"];
    text.replace(text.find("conv2d"), 6, "conv1d");
  });
  EXPECT_THAT(load_error(), HasSubstr("torchquant.json does not match its SHA-256"));
}

// Whatever byte changes, the file is refused or it is one that nothing reads (zip padding) and the model is the same.
TEST_F(ArchiveFile, AFlippedBitNeverChangesTheModel) {
  save_module(make_module());
  const std::string whole = bytes();
  const at::Tensor expected = at::full({2, 3}, 0.5);
  size_t refused = 0;
  for (size_t at = 0; at < whole.size(); ++at) {
    std::string damaged = whole;
    damaged[at] ^= 1 << (at % 8);
    write_bytes(damaged);
    try {
      auto module = load(path_);
      ASSERT_TRUE(at::equal(module.forward({at::ones({2, 3})}).toTensor(), expected)) << "flipped byte " << at;
      ASSERT_EQ(read_receipt(path_).to_json(), make_receipt().to_json()) << "flipped byte " << at;
    } catch (const c10::Error& error) {
      ASSERT_THAT(error.what_without_backtrace(), HasSubstr("cannot load")) << "flipped byte " << at;
      ++refused;
    }
  }
  EXPECT_GT(refused, 0u);
}

TEST_F(ArchiveFile, RefusesBadStoredParameters) {
  save_module(make_module(kInfinity));
  EXPECT_THAT(load_error(), AllOf(HasSubstr("torchquant::archive_test_op"), HasSubstr("argument 'scale'"), HasSubstr("inf")));
  save_module(make_module(-0.5f));
  EXPECT_THAT(load_error(), HasSubstr("argument 'scale' must be finite and positive, with a finite reciprocal; the file holds -0.5"));
  save_module(make_module(1e-39f));  // its reciprocal is infinite
  EXPECT_THAT(load_error(), HasSubstr("argument 'scale' must be finite and positive, with a finite reciprocal"));
  save_module(make_module(0.5f, "float('nan')"));
  EXPECT_THAT(load_error(), HasSubstr("argument 'output_scale' must be finite and positive"));
}

TEST_F(ArchiveFile, AFailedSaveLeavesTheOldFile) {
  save_module(make_module());
  const std::string old = bytes();
  rlimit limit{};
  getrlimit(RLIMIT_FSIZE, &limit);
  const rlimit small{old.size() / 2, limit.rlim_max};
  const auto previous = signal(SIGXFSZ, SIG_IGN);  // so that write() fails, as on a full disk
  setrlimit(RLIMIT_FSIZE, &small);
  std::string message;
  try {
    save_module(make_module(0.75f));
  } catch (const c10::Error& error) {
    message = error.what_without_backtrace();
  }
  setrlimit(RLIMIT_FSIZE, &limit);
  signal(SIGXFSZ, previous);
  EXPECT_THAT(message, AllOf(HasSubstr("cannot write '" + path_), HasSubstr("File too large"), HasSubstr("unchanged")));
  EXPECT_EQ(bytes(), old);
  EXPECT_EQ(std::distance(fs::directory_iterator(directory_), {}), 1) << "the unfinished file was left behind";
}

TEST_F(ArchiveFile, SaveNamesWhatItCannotWrite) {
  path_ = (directory_ / "missing" / "model.pt").string();
  EXPECT_THROW(
      {
        try {
          save_module(make_module());
        } catch (const c10::Error& error) {
          EXPECT_THAT(error.what_without_backtrace(), AllOf(HasSubstr(path_), HasSubstr("No such file or directory")));
          throw;
        }
      },
      c10::Error);
  EXPECT_FALSE(fs::exists(directory_ / "missing"));
}

TEST_F(ArchiveFile, SaveThroughALinkReplacesItsTarget) {
  const std::string link = (directory_ / "latest.pt").string();
  save_module(make_module());
  fs::create_symlink(path_, link);
  save(make_module(0.75f), make_receipt(), link);
  EXPECT_TRUE(fs::is_symlink(link));
  EXPECT_TRUE(at::equal(load(path_).forward({at::ones({2, 3})}).toTensor(), at::full({2, 3}, 0.75)));
}

TEST(Receipt, RefusesTextOfAnotherKind) {
  EXPECT_THROW(Receipt::from_json("{\"rows\": [{\"layer\": 1}]}"), c10::Error);
  EXPECT_THROW(Receipt::from_json("nothing"), c10::Error);
}

}  // namespace
}  // namespace torchquant
