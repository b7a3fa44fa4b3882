// The Python module torchquant._C: the whole of pybind11 in this project. Arguments and results are torch's own types,
// so it must be built with the pybind11 headers that torch bundles.
#include <torch/csrc/Exceptions.h>
#include <torch/csrc/jit/python/pybind.h>
#include <torch/csrc/utils/pybind.h>

#include <cmath>
#include <functional>
#include <string>
#include <utility>
#include <vector>

#include "archive/archive.h"
#include "convert/convert.h"
#include "convert/layer_pairs.h"
#include "convert/sensitivity.h"
#include "kernels/isa.h"
#include "numerics/stats.h"
#include "runtime/device.h"
#include "runtime/load.h"
#include "runtime/measure.h"
#include "runtime/packed_weights.h"

namespace py = pybind11;

namespace torchquant {
namespace {

std::tuple<torch::jit::Module, std::string> convert_module(const torch::jit::Module& prepared,
                                                           const std::string& on_fallback, bool islands) {
  TORCH_CHECK_VALUE(on_fallback == "error" || on_fallback == "allow",
                    "convert: on_fallback must be 'error' or 'allow', got '", on_fallback, "'");
  const ConvertResult result = convert(
      prepared, {.on_fallback = on_fallback == "allow" ? Fallback::kAllow : Fallback::kError, .islands = islands});
  return {result.module, result.receipt.to_json()};
}

void save_with_receipt(const torch::jit::Module& module, const std::string& receipt_json, const std::string& path) {
  save(module, Receipt::from_json(receipt_json), path);
}

std::pair<torch::jit::Module, std::string> load_with_receipt(const std::string& path, at::Device device) {
  Receipt receipt;
  torch::jit::Module module = load(path, device, &receipt);
  return {std::move(module), receipt.to_json()};
}

void check_module_runs_on(const torch::jit::Module& module, at::Device device, const std::string& receipt_json) {
  const Receipt receipt = Receipt::from_json(receipt_json);
  check_runs_on(module, device, &receipt);
}

std::string receipt_json_on(const std::string& receipt_json, at::Device device) {
  return receipt_on(Receipt::from_json(receipt_json), device).to_json();
}

// What `torchquant inspect` shows besides the receipt.
py::dict read_manifest(const std::string& path) {
  archive::Manifest manifest;
  {
    const py::gil_scoped_release no_gil;  // every byte is hashed; a progress bar goes on meanwhile
    manifest = archive::open_verified(path).manifest;
  }
  py::dict result;
  result["format_version"] = manifest.format_version;
  result["torchquant_version"] = manifest.torchquant_version;
  result["torch_version"] = manifest.torch_version;
  result["receipt_json"] = manifest.receipt_json;
  return result;
}

std::vector<double> time_module_runs(torch::jit::Module& module, const std::vector<at::Tensor>& inputs,
                                     int64_t warm_up_runs, int64_t runs) {
  const std::vector<c10::IValue> values(inputs.begin(), inputs.end());
  return time_runs(module, values, {.warm_up_runs = warm_up_runs, .runs = runs});
}

py::dict summarize_times(std::vector<double> times_ms) {
  const Latency latency = summarize(std::move(times_ms));
  py::dict result;
  result["runs"] = latency.runs;
  result["p50_ms"] = latency.p50_ms;
  result["p95_ms"] = latency.p95_ms;
  result["p99_ms"] = latency.p99_ms;
  result["mean_ms"] = latency.mean_ms;
  result["min_ms"] = latency.min_ms;
  return result;
}

py::list list_packed_weights(const torch::jit::Module& module) {
  py::list rows;
  for (const PackedWeight& weight : packed_weights(module)) {
    py::dict row;
    row["buffer"] = weight.buffer;
    row["kernel"] = weight.kernel;
    row["bytes"] = weight.bytes;
    row["milliseconds"] = weight.milliseconds;
    rows.append(row);
  }
  return rows;
}

py::dict measure_module(torch::jit::Module& module, const std::vector<at::Tensor>& inputs, int64_t warm_up_runs,
                        int64_t runs) {
  std::vector<double> times_ms;
  {
    const py::gil_scoped_release no_gil;
    times_ms = time_module_runs(module, inputs, warm_up_runs, runs);
  }
  return summarize_times(std::move(times_ms));
}

// One dict per layer: "layer", "kind", and the paths of the fake-quants on its "weights" and "inputs".
py::list list_layer_fake_quants(const torch::jit::Module& prepared) {
  py::list result;
  for (const LayerFakeQuants& layer : layer_fake_quants(prepared)) {
    py::dict row;
    row["layer"] = layer.layer;
    row["kind"] = layer.kind;
    row["weights"] = layer.weights;
    row["inputs"] = layer.inputs;
    result.append(row);
  }
  return result;
}

std::vector<c10::IValue> call_arguments(const std::vector<at::Tensor>& tensors) {
  return {tensors.begin(), tensors.end()};
}

std::vector<at::Tensor> tensors_of(const std::vector<c10::IValue>& values) {
  std::vector<at::Tensor> tensors;
  for (const c10::IValue& value : values) tensors.push_back(value.toTensor());
  return tensors;
}

// One dict per layer, whose "float" and "quantized" are (module, inputs).
py::list list_layer_pairs(const torch::jit::Module& prepared, const std::vector<at::Tensor>& inputs) {
  std::vector<LayerPair> pairs;
  {
    const py::gil_scoped_release no_gil;
    pairs = layer_pairs(prepared, call_arguments(inputs));
  }
  py::list result;
  for (const LayerPair& pair : pairs) {
    py::dict row;
    row["layer"] = pair.layer;
    row["kernel"] = pair.kernel;
    row["precision"] = pair.precision;
    row["float"] = py::make_tuple(pair.float_layer, tensors_of(pair.float_inputs));
    row["quantized"] = py::make_tuple(pair.quantized_layer, tensors_of(pair.quantized_inputs));
    result.append(row);
  }
  return result;
}

// (signal, noise) of two sequences of tensors.
std::pair<double, double> signal_and_noise(const std::vector<at::Tensor>& reference,
                                           const std::vector<at::Tensor>& actual) {
  TORCH_CHECK_VALUE(reference.size() == actual.size(), "sqnr: the outputs hold ", reference.size(), " and ",
                    actual.size(), " tensors");
  SignalAndNoise sums;
  for (size_t i = 0; i < reference.size(); ++i) sums.add(reference[i], actual[i]);
  return {sums.signal, sums.noise};
}

py::dict scan_module(const torch::jit::Module& prepared, const std::vector<std::vector<at::Tensor>>& batches,
                     const std::function<void(size_t, size_t)>& progress) {
  std::vector<std::vector<c10::IValue>> arguments;
  for (const std::vector<at::Tensor>& batch : batches) arguments.push_back(call_arguments(batch));
  SensitivityScan scan;
  {
    const py::gil_scoped_release no_gil;  // `progress` takes it back for its calls
    scan = scan_sensitivity(prepared, arguments, progress);
  }
  py::list rows;
  for (const LayerSensitivity& layer : scan.ranking()) {
    py::dict row;
    row["layer"] = layer.layer;
    row["kind"] = layer.kind;
    row["alone_sqnr_db"] = layer.alone_sqnr_db;
    row["but_one_sqnr_db"] = layer.but_one_sqnr_db;
    rows.append(row);
  }
  py::dict result;
  result["quantized_sqnr_db"] = scan.quantized_sqnr_db;
  result["ranking"] = rows;
  return result;
}

kernels::Isa isa_named(const std::string& name) {
  std::string allowed;
  for (const kernels::Isa isa : kernels::available_isas()) {
    if (name == kernels::isa_name(isa)) return isa;
    allowed += std::string(allowed.empty() ? "" : ", ") + kernels::isa_name(isa);
  }
  TORCH_CHECK_VALUE(false, "torchquant: instruction set '", name, "' is not available here; available: ", allowed);
}

std::vector<std::string> available_isa_names() {
  std::vector<std::string> names;
  for (const kernels::Isa isa : kernels::available_isas()) names.emplace_back(kernels::isa_name(isa));
  return names;
}

// The bins + 1 edges of the histogram that an observer of this range keeps, for drawing it.
std::vector<double> histogram_edges(double min_val, double max_val, int64_t bins) {
  const numerics::HistogramGrid grid =
      numerics::histogram_grid({static_cast<float>(min_val), static_cast<float>(max_val)}, static_cast<int32_t>(bins));
  std::vector<double> edges;
  for (int32_t edge = 0; edge <= grid.bins; ++edge) edges.push_back(std::ldexp(edge - grid.negative, grid.exponent));
  return edges;
}

}  // namespace
}  // namespace torchquant

// wrap_pybind_function turns c10::Error into the matching Python exception, without a C++ stack in its text.
PYBIND11_MODULE(_C, m) {
  using namespace torchquant;
  m.def("convert", torch::wrap_pybind_function_no_gil(convert_module), py::arg("prepared"), py::arg("on_fallback"),
        py::arg("islands") = true);
  m.def("save", torch::wrap_pybind_function_no_gil(save_with_receipt), py::arg("module"), py::arg("receipt_json"),
        py::arg("path"));
  m.def("load", torch::wrap_pybind_function_no_gil(load_with_receipt), py::arg("path"), py::arg("device"));
  m.def("check_device", torch::wrap_pybind_function_no_gil(check_device), py::arg("device"));
  m.def("check_runs_on", torch::wrap_pybind_function_no_gil(check_module_runs_on), py::arg("module"), py::arg("device"),
        py::arg("receipt_json"));
  m.def("needed_capability", torch::wrap_pybind_function(needed_capability), py::arg("module"));
  m.def("receipt_on", torch::wrap_pybind_function(receipt_json_on), py::arg("receipt_json"), py::arg("device"));
  m.def("read_manifest", torch::wrap_pybind_function(read_manifest), py::arg("path"));
  m.def("time_runs", torch::wrap_pybind_function_no_gil(time_module_runs), py::arg("module"), py::arg("inputs"),
        py::arg("warm_up_runs"), py::arg("runs"));
  m.def("summarize_times", torch::wrap_pybind_function(summarize_times), py::arg("times_ms"));
  m.def("measure", torch::wrap_pybind_function(measure_module), py::arg("module"), py::arg("inputs"),
        py::arg("warm_up_runs"), py::arg("runs"));
  m.def("packed_weights", torch::wrap_pybind_function(list_packed_weights), py::arg("module"));
  m.def("layer_fake_quants", torch::wrap_pybind_function(list_layer_fake_quants), py::arg("prepared"));
  m.def("layer_pairs", torch::wrap_pybind_function(list_layer_pairs), py::arg("prepared"), py::arg("inputs"));
  m.def("float_module", torch::wrap_pybind_function(float_module), py::arg("prepared"));
  m.def("signal_and_noise", torch::wrap_pybind_function(signal_and_noise), py::arg("reference"), py::arg("actual"));
  m.def("scan_sensitivity", torch::wrap_pybind_function(scan_module), py::arg("prepared"), py::arg("batches"),
        py::arg("progress"));
  m.def("histogram_edges", torch::wrap_pybind_function(histogram_edges), py::arg("min_val"), py::arg("max_val"),
        py::arg("bins"));
  m.def("available_isas", torch::wrap_pybind_function(available_isa_names));
  m.def("selected_isa",
        torch::wrap_pybind_function([] { return std::string(kernels::isa_name(kernels::selected_isa())); }));
  m.def("force_isa", torch::wrap_pybind_function([](const std::string& name) { kernels::force_isa(isa_named(name)); }),
        py::arg("name"));
}
