#include "archive/receipt.h"

#include <nlohmann/json.hpp>

#include "c10/util/Exception.h"

namespace torchquant {
namespace {

using nlohmann::ordered_json;

ordered_json to_document(const ReceiptRow& row) {
  return {
      {"layer", row.layer},         {"kind", row.kind},
      {"precision", row.precision}, {"kernel", row.kernel},
      {"reason", row.reason},       {"fused", row.fused},
      {"inputs", row.inputs},       {"output", row.output.empty() ? ordered_json(nullptr) : ordered_json(row.output)},
      {"fallback", row.fallback}};
}

ReceiptRow to_row(const ordered_json& document) {
  ReceiptRow row;
  row.layer = document.at("layer").get<std::string>();
  row.kind = document.at("kind").get<std::string>();
  row.precision = document.at("precision").get<std::string>();
  row.kernel = document.at("kernel").get<std::string>();
  row.reason = document.at("reason").get<std::string>();
  row.fused = document.at("fused").get<std::vector<std::string>>();
  row.inputs = document.at("inputs").get<std::vector<std::string>>();
  if (!document.at("output").is_null()) row.output = document.at("output").get<std::string>();
  row.fallback = document.value("fallback", false);  // files from before this field have none
  return row;
}

}  // namespace

std::string Receipt::to_json() const {
  ordered_json rows_document = ordered_json::array();
  for (const ReceiptRow& row : rows) rows_document.push_back(to_document(row));
  return ordered_json{{"rows", rows_document}}.dump();
}

Receipt Receipt::from_json(const std::string& text) {
  try {
    Receipt receipt;
    const ordered_json document = ordered_json::parse(text);
    for (const ordered_json& row : document.at("rows")) receipt.rows.push_back(to_row(row));
    return receipt;
  } catch (const ordered_json::exception& error) {
    TORCH_CHECK(false, "torchquant: the receipt cannot be read: ", error.what());
  }
}

}  // namespace torchquant
