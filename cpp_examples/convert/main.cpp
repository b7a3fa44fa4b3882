// Converts a prepared TorchScript file to integers, without Python: the converted file and its receipt come out.
//
//   convert PREPARED OUTPUT [--receipt FILE] [--allow-fallback]
//
// PREPARED is what torchquant.trace(prepared, example_inputs).save(path) wrote in Python, or cpp_examples/qat in C++.
#include <torchquant/torchquant.h>

#include <fstream>
#include <iostream>
#include <stdexcept>
#include <string>
#include <vector>

namespace {

constexpr const char* kUsage =
    "usage: convert PREPARED OUTPUT [--receipt FILE] [--allow-fallback]\n"
    "  PREPARED          a prepared model as TorchScript: torchquant.trace(prepared, example_inputs).save(path)\n"
    "  OUTPUT            the integer model; torchquant::load and torchquant.load read it\n"
    "  --receipt         write the receipt as JSON: for each layer its kernel, or why it stayed float\n"
    "  --allow-fallback  leave a layer float that cannot be lowered, instead of refusing\n"
    "  --help            print this\n"
    "Prints the receipt: for each layer its kernel, or why it stayed float.\n"
    "\n"
    "In Python:  prepared = torchquant.prepare(model, example, torchquant.qconfigs.int8_static())\n"
    "            torchquant.calibrate(prepared, batches)\n"
    "            torchquant.trace(prepared, example).save('prepared.pt')\n"
    "Here:       convert prepared.pt model.pt --receipt receipt.json\n";

struct Options {
  std::string prepared, output, receipt;
  torchquant::ConvertOptions convert;
  bool help = false;
};

Options parse(int argc, char** argv) {
  Options options;
  std::vector<std::string> files;
  for (int i = 1; i < argc; ++i) {
    const std::string argument = argv[i];
    if (argument == "--allow-fallback") {
      options.convert.on_fallback = torchquant::Fallback::kAllow;
    } else if (argument == "--receipt") {
      if (i + 1 == argc) throw std::invalid_argument("--receipt needs a file");
      options.receipt = argv[++i];
    } else if (argument == "--help" || argument == "-h") {
      options.help = true;
      return options;
    } else if (argument.starts_with("--")) {
      throw std::invalid_argument("unknown option " + argument);
    } else {
      files.push_back(argument);
    }
  }
  if (files.size() != 2) throw std::invalid_argument("expected PREPARED and OUTPUT");
  options.prepared = files[0];
  options.output = files[1];
  return options;
}

void write_receipt(const torchquant::Receipt& receipt, const std::string& path) {
  std::ofstream file(path);
  file << receipt.to_json() << "\n";
  if (!file.flush()) throw std::runtime_error("cannot write '" + path + "'");
}

void run_example(const Options& options) {
  if (options.help) {
    std::cout << kUsage;
    return;
  }
  const torch::jit::Module prepared = torch::jit::load(options.prepared, at::kCPU);
  const torchquant::ConvertResult result = torchquant::convert(prepared, options.convert);
  torchquant::save(result.module, result.receipt, options.output);
  if (!options.receipt.empty()) write_receipt(result.receipt, options.receipt);
  for (const torchquant::ReceiptRow& row : result.receipt.rows) {
    std::cout << row.layer << "  " << row.kind << "  " << row.precision << "  "
              << (row.reason.empty() ? row.kernel : row.reason) << "\n";
  }
}

}  // namespace

int main(int argc, char** argv) {
  try {
    run_example(parse(argc, argv));
  } catch (const c10::Error& error) {
    std::cerr << error.what_without_backtrace() << "\n";
    return 1;
  } catch (const std::logic_error& error) {
    std::cerr << error.what() << "\n" << kUsage;
    return 2;
  } catch (const std::exception& error) {
    std::cerr << error.what() << "\n";
    return 1;
  }
}
