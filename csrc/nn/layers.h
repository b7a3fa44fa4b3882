// torch::nn layers whose weight is fake-quantized in forward: drop-in replacements for QAT in C++. Options, parameter
// names and state are those of the torch::nn layer; `weight_fake_quant` is added. They do not derive from it, because a
// class that does cannot be cloned: torch would copy the torch::nn part alone. Batch normalisation stays a
// torch::nn::BatchNorm after the layer: the converter absorbs it.
#pragma once

#include <torch/nn/cloneable.h>
#include <torch/nn/options/conv.h>
#include <torch/nn/options/embedding.h>
#include <torch/nn/options/linear.h>
#include <torch/nn/pimpl.h>

#include "nn/fake_quantize.h"

namespace torchquant::nn {

class TQ_API LinearImpl : public torch::nn::Cloneable<LinearImpl> {
 public:
  LinearImpl(int64_t in_features, int64_t out_features)
      : LinearImpl(torch::nn::LinearOptions(in_features, out_features)) {}
  explicit LinearImpl(const torch::nn::LinearOptions& options, int64_t weight_bits = 8);
  void reset() override;
  void pretty_print(std::ostream& stream) const override;
  // x: [..., in_features] -> [..., out_features]
  torch::Tensor forward(const torch::Tensor& x);

  torch::nn::LinearOptions options;
  int64_t weight_bits;
  torch::Tensor weight, bias;
  FakeQuantize weight_fake_quant{nullptr};
};
TORCH_MODULE(Linear);

class TQ_API Conv1dImpl : public torch::nn::Cloneable<Conv1dImpl> {
 public:
  explicit Conv1dImpl(const torch::nn::Conv1dOptions& options, int64_t weight_bits = 8);
  void reset() override;
  void pretty_print(std::ostream& stream) const override;
  // x: [N, C_in, L] -> [N, C_out, L_out]; zero padding only
  torch::Tensor forward(const torch::Tensor& x);

  torch::nn::Conv1dOptions options;
  int64_t weight_bits;
  torch::Tensor weight, bias;
  FakeQuantize weight_fake_quant{nullptr};
};
TORCH_MODULE(Conv1d);

class TQ_API Conv2dImpl : public torch::nn::Cloneable<Conv2dImpl> {
 public:
  explicit Conv2dImpl(const torch::nn::Conv2dOptions& options, int64_t weight_bits = 8);
  void reset() override;
  void pretty_print(std::ostream& stream) const override;
  // x: [N, C_in, H, W] -> [N, C_out, H_out, W_out]; zero padding only
  torch::Tensor forward(const torch::Tensor& x);

  torch::nn::Conv2dOptions options;
  int64_t weight_bits;
  torch::Tensor weight, bias;
  FakeQuantize weight_fake_quant{nullptr};
};
TORCH_MODULE(Conv2d);

class TQ_API EmbeddingImpl : public torch::nn::Cloneable<EmbeddingImpl> {
 public:
  EmbeddingImpl(int64_t num_embeddings, int64_t embedding_dim)
      : EmbeddingImpl(torch::nn::EmbeddingOptions(num_embeddings, embedding_dim)) {}
  explicit EmbeddingImpl(const torch::nn::EmbeddingOptions& options, int64_t weight_bits = 8);
  void reset() override;
  void pretty_print(std::ostream& stream) const override;
  // indices: int64 of any shape -> [..., embedding_dim]
  torch::Tensor forward(const torch::Tensor& indices);

  torch::nn::EmbeddingOptions options;
  int64_t weight_bits;
  torch::Tensor weight;
  FakeQuantize weight_fake_quant{nullptr};
};
TORCH_MODULE(Embedding);

}  // namespace torchquant::nn
