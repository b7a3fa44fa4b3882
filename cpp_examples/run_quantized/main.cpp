// Runs a saved TorchQuant model, without Python: predicts for every row of an input file and measures the latency.
//
//   run_quantized MODEL INPUTS [--device cpu|cuda|cuda:N] [--batch N] [--runs N] [--threads N] [--output FILE]
//   [--plain]
//                 [--json]
//
// INPUTS is what Python writes with torch.save(tensor, path), or torch.save((tensor, tensor), path) for a model of
// several arguments. The rows (first dimension) go through the model in batches of N; latency is that of one batch.
#include <torchquant/torchquant.h>

#include <algorithm>
#include <charconv>
#include <cstdint>
#include <cstdio>
#include <iostream>
#include <limits>
#include <stdexcept>
#include <string>
#include <vector>

namespace {

constexpr const char* kUsage =
    "usage: run_quantized MODEL INPUTS [--device DEVICE] [--batch N] [--runs N] [--threads N] [--output FILE] "
    "[--plain] "
    "[--json]\n"
    "  MODEL    a file that QuantizedModel.save (Python) or torchquant::save (C++) wrote\n"
    "  INPUTS   a file that torch.save(tensor) or torch.save((tensor, ...)) wrote\n"
    "  --device where the model runs: cpu (the default), cuda, cuda:1\n"
    "  --batch  rows per call; all rows if not given      --runs    measured calls (100)\n"
    "  --threads CPU threads                              --output  write the outputs for torch.load\n"
    "  --plain  MODEL is any TorchScript file, run unverified (to compare with a float model)\n"
    "  --json   print one JSON document                   --help    print this\n"
    "Prints for every row the class with the largest output, and the latency of one batch (P50, P95, P99, mean).\n"
    "\n"
    "In Python:  quantized = torchquant.quantize_model(model, example, torchquant.qconfigs.int8_static(), batches)\n"
    "            quantized.save('model.pt')\n"
    "            torch.save(images, 'images.pt')\n"
    "Here:       run_quantized model.pt images.pt\n"
    "            run_quantized model.pt images.pt --batch 1 --threads 1 --runs 1000     the latency of single images\n"
    "            run_quantized model.pt images.pt --output scores.pt                    torch.load reads the outputs\n";

struct Options {
  std::string model, inputs, output;
  at::Device device = at::kCPU;
  int64_t batch = 0, runs = 100;
  int threads = 0;
  bool plain = false, json = false, help = false;
};

// `Number` is the type that the option is used in, so that a number beyond it is refused and not cut off.
template <typename Number>
Number positive_number(const std::string& option, const std::string& text) {
  Number number = 0;
  const char* end = text.data() + text.size();
  const auto [stop, error] = std::from_chars(text.data(), end, number);
  if (error != std::errc() || stop != end || number < 1) {
    const std::string largest = std::to_string(std::numeric_limits<Number>::max());
    throw std::invalid_argument(option + " needs a positive number up to " + largest + "; got '" + text + "'");
  }
  return number;
}

at::Device device_named(const std::string& name) {
  try {
    const at::Device device(name);
    if (device.is_cpu() || device.is_cuda()) return device;
  } catch (const c10::Error&) {  // no device that torch knows
  }
  throw std::invalid_argument("--device needs cpu, cuda or cuda:N; got '" + name + "'");
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
    if (argument == "--device") {
      options.device = device_named(value());
    } else if (argument == "--batch") {
      options.batch = positive_number<int64_t>(argument, value());
    } else if (argument == "--runs") {
      options.runs = positive_number<int64_t>(argument, value());
    } else if (argument == "--threads") {
      options.threads = positive_number<int>(argument, value());
    } else if (argument == "--output") {
      options.output = value();
    } else if (argument == "--plain") {
      options.plain = true;
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
  if (files.size() != 2) throw std::invalid_argument("expected MODEL and INPUTS");
  options.model = files[0];
  options.inputs = files[1];
  return options;
}

std::vector<c10::IValue> load_rows(const std::string& path) {
  std::vector<c10::IValue> inputs = torchquant::load_inputs(path);
  for (const c10::IValue& input : inputs) {
    const at::Tensor& tensor = input.toTensor();
    if (tensor.dim() == 0 || tensor.size(0) == 0)
      throw std::runtime_error("'" + path + "' holds a tensor without rows");
    if (tensor.size(0) != inputs[0].toTensor().size(0)) {
      throw std::runtime_error("'" + path + "' holds tensors with different numbers of rows");
    }
  }
  return inputs;
}

std::vector<c10::IValue> rows(const std::vector<c10::IValue>& inputs, int64_t start, int64_t count) {
  std::vector<c10::IValue> batch;
  for (const c10::IValue& input : inputs) batch.emplace_back(input.toTensor().narrow(0, start, count));
  return batch;
}

// The scores: the output itself, or the first one of several.
at::Tensor scores_of(const c10::IValue& output) {
  return output.isTuple() ? output.toTupleRef().elements()[0].toTensor() : output.toTensor();
}

at::Tensor run_in_batches(torch::jit::Module& model, const std::vector<c10::IValue>& inputs, int64_t batch) {
  const int64_t total = inputs.at(0).toTensor().size(0);
  std::vector<at::Tensor> outputs;
  for (int64_t start = 0; start < total; start += batch) {
    outputs.push_back(scores_of(torchquant::run(model, rows(inputs, start, std::min(batch, total - start)))));
  }
  return at::cat(outputs);
}

template <typename Values>
std::string joined(const Values& values) {
  std::string text;
  for (const auto& value : values) text += (text.empty() ? "" : ", ") + std::to_string(value);
  return text;
}

void print(const Options& options, int64_t batch, const at::Tensor& predictions, const torchquant::Latency& latency) {
  const at::Tensor flat = predictions.flatten().contiguous();
  const std::string list = joined(c10::ArrayRef<int64_t>(flat.const_data_ptr<int64_t>(), flat.numel()));
  const char* format =
      options.json
          ? "{\"rows\": %lld, \"batch\": %lld, \"runs\": %lld, \"p50_ms\": %.6f, \"p95_ms\": %.6f, \"p99_ms\": %.6f, "
            "\"mean_ms\": %.6f, \"predictions\": [%s]}\n"
          : "rows %lld, batch %lld; latency of one batch over %lld runs: P50 %.3f ms, P95 %.3f ms, P99 %.3f ms, mean "
            "%.3f ms\npredictions: %s\n";
  std::printf(format, static_cast<long long>(predictions.size(0)), static_cast<long long>(batch),
              static_cast<long long>(latency.runs), latency.p50_ms, latency.p95_ms, latency.p99_ms, latency.mean_ms,
              list.c_str());
}

void run_example(const Options& options) {
  if (options.help) {
    std::cout << kUsage;
    return;
  }
  if (options.threads > 0) at::set_num_threads(options.threads);
  torchquant::check_device(options.device);
  torch::jit::Module model =
      options.plain ? torch::jit::load(options.model, options.device) : torchquant::load(options.model, options.device);
  std::vector<c10::IValue> inputs = load_rows(options.inputs);
  for (c10::IValue& input : inputs) input = input.toTensor().to(options.device);
  const int64_t total = inputs.at(0).toTensor().size(0);
  const int64_t batch = options.batch > 0 ? std::min(options.batch, total) : total;

  const at::Tensor output = run_in_batches(model, inputs, batch).cpu();
  const torchquant::Latency latency = torchquant::measure(model, rows(inputs, 0, batch), {.runs = options.runs});
  if (!options.output.empty()) torchquant::save_output(output, options.output);
  print(options, batch, output.argmax(-1), latency);
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
