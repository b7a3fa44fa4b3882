// What follows a compute op and goes into its kernel: batch norm, residual add, activation, quantize. Called by the
// passes that lower convolutions, linear layers, adds and products.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "ATen/core/Tensor.h"
#include "convert/conversion.h"
#include "convert/graph.h"
#include "convert/shapes.h"

namespace torchquant::conversion {

struct Activation {
  std::string name = "none";
  std::vector<double> bounds;  // [lo, hi] in real units, for the clamps
};

// The activation that a node computes, if the kernels have it.
std::optional<Activation> activation_of(const Conversion& conversion, const Node* node);

// An evaluated batch norm per channel: y = (x - mean) * factor + beta, factor = gamma / sqrt(var + eps).
struct BatchNorm {
  at::Tensor mean, factor, beta;
};

// nullopt for a batch norm in training mode or with parameters of the run.
std::optional<BatchNorm> batch_norm_of(const Conversion& conversion, const Node* node);

// The kernels' order is: batch norm, residual, activation, quantize. Each is optional.
struct Epilogue {
  std::vector<Node*> nodes;  // what the fused op replaces, the compute op first
  std::optional<BatchNorm> batch_norm;
  std::optional<Quantized> residual;
  Activation activation;
  QuantParams output;              // dtype Float where no quantize follows
  std::string output_path;         // of its fake-quant
  std::vector<std::string> fused;  // for the receipt

  Node* last() const { return nodes.back(); }
};

// What may be taken in besides activation and quantize, by the op's own kernel.
struct EpilogueParts {
  std::optional<int64_t> batch_norm_channels = std::nullopt;  // of a batch norm over the channels of the op's output
  const Shapes* shapes = nullptr;  // of the graph, to take a residual, which must have the shape of the op's output
  bool quantize = true;
};

// Follows the only readers of `compute`.
Epilogue match_epilogue(const Conversion& conversion, Node* compute, const EpilogueParts& parts);

// The ops' arguments activation ... output_dtype, and residual_multiplier and residual_zero_point if there is a
// residual.
std::vector<Argument> epilogue_arguments(const Epilogue& epilogue);
// Only activation and activation_args, for the ops whose output is float.
std::vector<Argument> activation_arguments(const Epilogue& epilogue);

// Puts `fused`, which stands in front of the epilogue's last node, in the place of its nodes and destroys them.
void replace_nodes(const Epilogue& epilogue, Value* fused);

}  // namespace torchquant::conversion
