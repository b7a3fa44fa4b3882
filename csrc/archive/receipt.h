// The lowering receipt: for every layer the kernel that runs it, or the reason it stayed float. Filled by the
// converter, kept in the saved file, shown by Python and the command line.
#pragma once

#include <string>
#include <vector>

#include "export.h"

namespace torchquant {

struct ReceiptRow {
  std::string layer = {};                // path of the weight's owner: "conv", "conv#2" on reuse
  std::string kind = {};                 // "conv2d", "linear", "add", ...
  std::string precision = {};            // "int8", "int4", "float"
  std::string kernel = {};               // what runs it: "quantized_conv/avx512"
  std::string reason = {};               // why it stayed float; empty for a lowered layer
  std::vector<std::string> fused = {};   // what the kernel took in besides the layer: "batch_norm", "add", "relu"
  std::vector<std::string> inputs = {};  // paths of the activation fake-quants that it reads
  std::string output = {};               // path of the activation fake-quant that it writes; empty for a float output
  bool fallback = false;                 // it was asked to be quantized and stayed float
};

struct TQ_API Receipt {
  std::vector<ReceiptRow> rows;

  // {"rows": [{"layer": ..., "output": null, ...}]}
  std::string to_json() const;
  // Throws c10::Error for text that to_json() does not write.
  static Receipt from_json(const std::string& text);
};

}  // namespace torchquant
