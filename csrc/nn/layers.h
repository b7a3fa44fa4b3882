// torch::nn layers whose weight is fake-quantized in forward: drop-in replacements for QAT in C++. Options, parameter
// names and state are those of the torch::nn layer; `weight_fake_quant` is added. Batch normalisation stays a
// torch::nn::BatchNorm after the layer: the converter absorbs it.
#pragma once

#include <torch/nn/modules/conv.h>
#include <torch/nn/modules/embedding.h>
#include <torch/nn/modules/linear.h>

#include "nn/fake_quantize.h"

namespace torchquant::nn {

class TQ_API LinearImpl : public torch::nn::LinearImpl {
 public:
  LinearImpl(int64_t in_features, int64_t out_features)
      : LinearImpl(torch::nn::LinearOptions(in_features, out_features)) {}
  explicit LinearImpl(const torch::nn::LinearOptions& options, int64_t weight_bits = 8);
  // x: [..., in_features] -> [..., out_features]
  torch::Tensor forward(const torch::Tensor& x);

  FakeQuantize weight_fake_quant{nullptr};
};
TORCH_MODULE(Linear);

class TQ_API Conv1dImpl : public torch::nn::Conv1dImpl {
 public:
  explicit Conv1dImpl(const torch::nn::Conv1dOptions& options, int64_t weight_bits = 8);
  // x: [N, C_in, L] -> [N, C_out, L_out]; zero padding only
  torch::Tensor forward(const torch::Tensor& x);

  FakeQuantize weight_fake_quant{nullptr};
};
TORCH_MODULE(Conv1d);

class TQ_API Conv2dImpl : public torch::nn::Conv2dImpl {
 public:
  explicit Conv2dImpl(const torch::nn::Conv2dOptions& options, int64_t weight_bits = 8);
  // x: [N, C_in, H, W] -> [N, C_out, H_out, W_out]; zero padding only
  torch::Tensor forward(const torch::Tensor& x);

  FakeQuantize weight_fake_quant{nullptr};
};
TORCH_MODULE(Conv2d);

class TQ_API EmbeddingImpl : public torch::nn::EmbeddingImpl {
 public:
  EmbeddingImpl(int64_t num_embeddings, int64_t embedding_dim)
      : EmbeddingImpl(torch::nn::EmbeddingOptions(num_embeddings, embedding_dim)) {}
  explicit EmbeddingImpl(const torch::nn::EmbeddingOptions& options, int64_t weight_bits = 8);
  // indices: int64 of any shape -> [..., embedding_dim]
  torch::Tensor forward(const torch::Tensor& indices);

  FakeQuantize weight_fake_quant{nullptr};
};
TORCH_MODULE(Embedding);

}  // namespace torchquant::nn
