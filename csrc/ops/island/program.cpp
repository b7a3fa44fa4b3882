// The text form of an island's program; see program.h.
#include "ops/island/program.h"

#include <c10/util/Exception.h>

#include <cmath>
#include <limits>
#include <nlohmann/json.hpp>
#include <optional>

namespace torchquant::island {
namespace {

using nlohmann::ordered_json;

constexpr int64_t kTextVersion = 1;

constexpr std::pair<Source, const char*> kSources[] = {
    {Source::kValue, "value"}, {Source::kInput, "input"}, {Source::kConstant, "constant"}, {Source::kSize, "size"}};

const char* name_of(Source source) {
  for (const auto& [candidate, name] : kSources) {
    if (candidate == source) return name;
  }
  TORCH_INTERNAL_ASSERT(false);
}

// JSON writes finite doubles so that they read back the same, and has no others.
ordered_json number(double value) {
  if (std::isfinite(value)) return value;
  return {{"float", std::isnan(value) ? "nan" : value > 0 ? "inf" : "-inf"}};
}

double special_number(const std::string& name) {
  if (name == "nan") return std::numeric_limits<double>::quiet_NaN();
  TORCH_CHECK(name == "inf" || name == "-inf", "'", name, "' is no number");
  return name == "inf" ? std::numeric_limits<double>::infinity() : -std::numeric_limits<double>::infinity();
}

ordered_json document_of(const Reference& reference) { return {{name_of(reference.source), reference.index}}; }

ordered_json document_of(const Argument& argument) {
  return std::visit(
      [](const auto& content) -> ordered_json {
        using Content = std::decay_t<decltype(content)>;
        if constexpr (std::is_same_v<Content, std::monostate>) {
          return nullptr;
        } else if constexpr (std::is_same_v<Content, double>) {
          return number(content);
        } else if constexpr (std::is_same_v<Content, Reference>) {
          return document_of(content);
        } else if constexpr (std::is_same_v<Content, List>) {
          ordered_json elements = ordered_json::array();
          for (const Argument& element : content) elements.push_back(document_of(element));
          return elements;
        } else {
          return content;
        }
      },
      argument.content);
}

std::optional<Reference> reference_in(const ordered_json& document) {
  for (const auto& [source, name] : kSources) {
    if (document.contains(name)) return Reference{source, document.at(name).get<int64_t>()};
  }
  return std::nullopt;
}

Argument argument_of(const ordered_json& document) {
  if (document.is_null()) return {};
  if (document.is_boolean()) return {document.get<bool>()};
  if (document.is_number_integer()) return {document.get<int64_t>()};
  if (document.is_number()) return {document.get<double>()};
  if (document.is_string()) return {document.get<std::string>()};
  if (const auto reference = reference_in(document)) return {*reference};
  if (document.is_object()) return {special_number(document.at("float").get<std::string>())};
  List list;
  for (const ordered_json& element : document) list.push_back(argument_of(element));
  return {std::move(list)};
}

void check_known(const Reference& reference, int64_t values) {
  TORCH_CHECK(reference.index >= 0 && (reference.source != Source::kValue || reference.index < values),
              "no step has computed ", name_of(reference.source), " ", reference.index, " yet");
}

Step step_of(const ordered_json& document, int64_t values) {
  Step step{document.at("op").get<std::string>(), {}, document.value("results", int64_t{1})};
  TORCH_CHECK(step.results >= 1, "a step has ", step.results, " results");
  for (const ordered_json& argument : document.at("args")) {
    step.arguments.push_back(argument_of(argument));
    for_each_reference(step.arguments.back(), [&](const Reference& reference) { check_known(reference, values); });
  }
  return step;
}

Program program_of(const ordered_json& document) {
  const auto version = document.at("version").get<int64_t>();
  TORCH_CHECK(version == kTextVersion, "its version is ", version, " and this library reads version ", kTextVersion);
  Program program;
  int64_t values = 0;
  for (const ordered_json& step : document.at("steps")) {
    program.steps.push_back(step_of(step, values));
    values += program.steps.back().results;
  }
  for (const ordered_json& output : document.at("outputs")) {
    const auto reference = reference_in(output);
    TORCH_CHECK(reference, "an output refers to nothing");
    check_known(*reference, values);
    program.outputs.push_back(*reference);
  }
  return program;
}

}  // namespace

std::string Program::to_text() const {
  ordered_json step_documents = ordered_json::array();
  for (const Step& step : steps) {
    ordered_json document{{"op", step.op}, {"args", document_of(Argument{step.arguments})}};
    if (step.results != 1) document["results"] = step.results;
    step_documents.push_back(std::move(document));
  }
  ordered_json output_documents = ordered_json::array();
  for (const Reference& output : outputs) output_documents.push_back(document_of(output));
  return ordered_json{{"version", kTextVersion}, {"steps", step_documents}, {"outputs", output_documents}}.dump();
}

Program Program::parse(std::string_view text) {
  try {
    return program_of(ordered_json::parse(text));
  } catch (const ordered_json::exception& error) {
    TORCH_CHECK(false, "quantized_island: program cannot be read: ", error.what());
  } catch (const c10::Error& error) {
    TORCH_CHECK(false, "quantized_island: program cannot be read: ", error.what_without_backtrace());
  }
}

}  // namespace torchquant::island
