// The program of an island: the ops that one torchquant::quantized_island call stands for, in order, as a text that is
// stored in the graph. Written by the converter (convert/passes/form_islands.cpp), read by the executors of this folder
// and by the loader's parameter check. docs/file_format.md describes the text.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "export.h"

namespace torchquant::island {

// Where an argument of a step comes from, if not from the text itself.
enum class Source {
  kValue,     // a result of an earlier step, counted over all steps
  kInput,     // the op's argument `inputs`
  kConstant,  // the op's argument `constants`
  kSize,      // the op's argument `sizes`
};

struct Reference {
  Source source;
  int64_t index;
  bool operator==(const Reference&) const = default;
};

struct Argument;
using List = std::vector<Argument>;

// monostate stands for None.
struct Argument {
  std::variant<std::monostate, bool, int64_t, double, std::string, Reference, List> content;
  bool operator==(const Argument&) const = default;
};

// `op` is the qualified name with the overload ("aten::slice.Tensor"), arguments stand in the order of its schema. A
// few steps are no ops of the dispatcher, because they compute with sizes or take lists apart: see kSizeOf below.
struct Step {
  std::string op;
  List arguments;
  int64_t results = 1;
};

// (Tensor, int dim) -> int
inline constexpr const char* kSizeOf = "island::size";
// (int, int) -> int; division rounds down.
inline constexpr const char* kAddSizes = "island::add";
inline constexpr const char* kSubtractSizes = "island::sub";
inline constexpr const char* kMultiplySizes = "island::mul";
inline constexpr const char* kDivideSizes = "island::floordiv";
// (Tensor[]) -> its elements, one result each.
inline constexpr const char* kUnpack = "island::unpack";

struct TQ_API Program {
  std::vector<Step> steps;
  std::vector<Reference> outputs;

  std::string to_text() const;
  // Throws c10::Error for text that to_text() does not write, or that refers to what does not exist.
  static Program parse(std::string_view text);
};

// Calls visit(reference) for each reference in an argument, those in lists included.
template <typename Visit>
void for_each_reference(const Argument& argument, const Visit& visit) {
  if (const auto* reference = std::get_if<Reference>(&argument.content)) visit(*reference);
  if (const auto* list = std::get_if<List>(&argument.content)) {
    for (const Argument& element : *list) for_each_reference(element, visit);
  }
}

}  // namespace torchquant::island
