// Ranks the layers of a prepared model by what quantizing each of them does to the output, without Python.
//
//   sensitivity_scan PREPARED INPUTS [--batch N] [--threads N] [--json]
//
// PREPARED is what torchquant.trace(prepared, example_inputs).save(path) wrote in Python, or cpp_examples/qat in C++;
// INPUTS is what Python writes with torch.save(tensor, path), torch.save((tensor, tensor), path) for a model of several
// arguments, or a list of such batches. The rows (first dimension) of each go through the model in batches of N.
#include <torchquant/torchquant.h>

#include <algorithm>
#include <charconv>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <iostream>
#include <limits>
#include <stdexcept>
#include <string>
#include <vector>

namespace {

constexpr const char* kUsage =
    "usage: sensitivity_scan PREPARED INPUTS [--batch N] [--threads N] [--json]\n"
    "  PREPARED  a prepared model as TorchScript: torchquant.trace(prepared, example_inputs).save(path)\n"
    "  INPUTS    a file that torch.save wrote: a tensor, a tuple of tensors (the arguments of one call), or a list of "
    "such\n"
    "            batches\n"
    "  --batch   rows per call; all rows if not given      --threads  CPU threads\n"
    "  --json    print one JSON document\n"
    "  --help    print this\n"
    "Prints the layers from the one that hurts most: SQNR of the output in dB with that layer alone quantized, and "
    "with\n"
    "all layers but that one.\n"
    "\n"
    "In Python:  prepared = torchquant.prepare(model, example, torchquant.qconfigs.int8_static())\n"
    "            torchquant.calibrate(prepared, batches)\n"
    "            torchquant.trace(prepared, example).save('prepared.pt')\n"
    "            torch.save(example, 'inputs.pt')\n"
    "Here:       sensitivity_scan prepared.pt inputs.pt --batch 64\n";

struct Options {
  std::string prepared, inputs;
  int64_t batch = std::numeric_limits<int64_t>::max();
  int threads = 0;
  bool json = false, help = false;
};

// `Number` is the type that the option is used in, so that a number beyond it is refused and not cut off.
template <typename Number>
Number positive_number(const std::string& option, const std::string& text) {
  Number number = 0;
  const char* end = text.data() + text.size();
  const auto [stop, error] = std::from_chars(text.data(), end, number);
  if (error != std::errc() || stop != end || number < 1) {
    throw std::invalid_argument(option + " needs a positive number up to " +
                                std::to_string(std::numeric_limits<Number>::max()) + "; got '" + text + "'");
  }
  return number;
}

Options parse(int argc, char** argv) {
  Options options;
  std::vector<std::string> files;
  for (int i = 1; i < argc; ++i) {
    const std::string argument = argv[i];
    const auto value = [&] {
      if (i + 1 == argc) throw std::invalid_argument(argument + " needs a value");
      return std::string(argv[++i]);
    };
    if (argument == "--batch") {
      options.batch = positive_number<int64_t>(argument, value());
    } else if (argument == "--threads") {
      options.threads = positive_number<int>(argument, value());
    } else if (argument == "--json") {
      options.json = true;
    } else if (argument == "--help" || argument == "-h") {
      options.help = true;
      return options;
    } else if (argument.starts_with("--")) {
      throw std::invalid_argument("unknown option " + argument);
    } else {
      files.push_back(argument);
    }
  }
  if (files.size() != 2) throw std::invalid_argument("expected PREPARED and INPUTS");
  options.prepared = files[0];
  options.inputs = files[1];
  return options;
}

int64_t count_rows(const std::vector<c10::IValue>& inputs, const std::string& path) {
  for (const c10::IValue& input : inputs) {
    const at::Tensor& tensor = input.toTensor();
    if (tensor.dim() == 0 || tensor.size(0) == 0)
      throw std::runtime_error("'" + path + "' holds a tensor without rows");
    if (tensor.size(0) != inputs[0].toTensor().size(0)) {
      throw std::runtime_error("'" + path + "' holds tensors with different numbers of rows");
    }
  }
  return inputs[0].toTensor().size(0);
}

// Cuts one held batch into batches of `batch` rows and appends them.
void append_batches(const std::vector<c10::IValue>& inputs, int64_t rows, int64_t batch,
                    std::vector<std::vector<c10::IValue>>& batches) {
  for (int64_t start = 0; start < rows; start += std::min(batch, rows - start)) {
    batches.emplace_back();
    for (const c10::IValue& input : inputs) {
      batches.back().emplace_back(input.toTensor().narrow(0, start, std::min(batch, rows - start)));
    }
  }
}

// JSON has no infinity. The words are those of torchquant scan --json: "inf" for an output without error, "-inf" for
// one that holds NaN or infinity.
std::string number(double db) {
  if (std::isfinite(db)) return std::to_string(db);
  return db > 0 ? "\"inf\"" : "\"-inf\"";
}

std::string decibels(double db) {
  if (!std::isfinite(db)) return db > 0 ? "exact" : "not finite";
  char text[32];
  std::snprintf(text, sizeof text, "%.2f dB", db);
  return text;
}

void print_json(const torchquant::SensitivityScan& scan) {
  std::printf("{\"quantized_sqnr_db\": %s, \"ranking\": [", number(scan.quantized_sqnr_db).c_str());
  const char* separator = "";
  for (const torchquant::LayerSensitivity& row : scan.ranking()) {
    // A layer's name is a path of Python or C++ identifiers: nothing in it needs escaping.
    std::printf("%s{\"layer\": \"%s\", \"kind\": \"%s\", \"alone_sqnr_db\": %s, \"but_one_sqnr_db\": %s}", separator,
                row.layer.c_str(), row.kind.c_str(), number(row.alone_sqnr_db).c_str(),
                number(row.but_one_sqnr_db).c_str());
    separator = ", ";
  }
  std::printf("]}\n");
}

void print_table(const torchquant::SensitivityScan& scan) {
  std::printf("SQNR of the output: %s with all layers quantized\n", decibels(scan.quantized_sqnr_db).c_str());
  for (const torchquant::LayerSensitivity& row : scan.ranking()) {
    std::printf("%-40s %-18s alone %11s   all but this %11s\n", row.layer.c_str(), row.kind.c_str(),
                decibels(row.alone_sqnr_db).c_str(), decibels(row.but_one_sqnr_db).c_str());
  }
}

void run_example(const Options& options) {
  if (options.help) {
    std::cout << kUsage;
    return;
  }
  if (options.threads > 0) at::set_num_threads(options.threads);
  const torch::jit::Module prepared = torch::jit::load(options.prepared, at::kCPU);
  std::vector<std::vector<c10::IValue>> batches;
  for (const auto& inputs : torchquant::load_batches(options.inputs)) {
    append_batches(inputs, count_rows(inputs, options.inputs), options.batch, batches);
  }
  const torchquant::SensitivityScan scan = torchquant::scan_sensitivity(prepared, batches);
  options.json ? print_json(scan) : print_table(scan);
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
