// Implements the C++ QAT layers: each one is its torch::nn parent with the weight passed through a FakeQuantize.
#include "nn/layers.h"

#include <torch/nn/functional/conv.h>
#include <torch/nn/functional/embedding.h>
#include <torch/nn/functional/linear.h>

namespace torchquant::nn {

namespace F = torch::nn::functional;

namespace {

FakeQuantize weight_fake_quantize(const torch::Tensor& weight, int64_t weight_bits) {
  return FakeQuantize(FakeQuantizeOptions::weight(weight.size(0), /*axis=*/0, weight_bits));
}

template <size_t D>
void check_padding_mode(const char* layer, const torch::nn::detail::ConvNdOptions<D>& options) {
  TORCH_CHECK(std::holds_alternative<torch::enumtype::kZeros>(options.padding_mode()), layer,
              ": padding_mode must be zeros, the only one that integer convolution has");
}

}  // namespace

LinearImpl::LinearImpl(const torch::nn::LinearOptions& options, int64_t weight_bits) : torch::nn::LinearImpl(options) {
  weight_fake_quant = register_module("weight_fake_quant", weight_fake_quantize(weight, weight_bits));
}

torch::Tensor LinearImpl::forward(const torch::Tensor& x) { return F::linear(x, weight_fake_quant(weight), bias); }

Conv1dImpl::Conv1dImpl(const torch::nn::Conv1dOptions& options, int64_t weight_bits) : torch::nn::Conv1dImpl(options) {
  check_padding_mode("torchquant::nn::Conv1d", this->options);
  weight_fake_quant = register_module("weight_fake_quant", weight_fake_quantize(weight, weight_bits));
}

torch::Tensor Conv1dImpl::forward(const torch::Tensor& x) {
  return F::detail::conv1d(x, weight_fake_quant(weight), bias, options.stride(), options.padding(), options.dilation(),
                           options.groups());
}

Conv2dImpl::Conv2dImpl(const torch::nn::Conv2dOptions& options, int64_t weight_bits) : torch::nn::Conv2dImpl(options) {
  check_padding_mode("torchquant::nn::Conv2d", this->options);
  weight_fake_quant = register_module("weight_fake_quant", weight_fake_quantize(weight, weight_bits));
}

torch::Tensor Conv2dImpl::forward(const torch::Tensor& x) {
  return F::detail::conv2d(x, weight_fake_quant(weight), bias, options.stride(), options.padding(), options.dilation(),
                           options.groups());
}

EmbeddingImpl::EmbeddingImpl(const torch::nn::EmbeddingOptions& options, int64_t weight_bits)
    : torch::nn::EmbeddingImpl(options) {
  weight_fake_quant = register_module("weight_fake_quant", weight_fake_quantize(weight, weight_bits));
}

torch::Tensor EmbeddingImpl::forward(const torch::Tensor& indices) {
  return F::detail::embedding(indices, weight_fake_quant(weight), options.padding_idx(), options.max_norm(),
                              options.norm_type(), options.scale_grad_by_freq(), options.sparse());
}

}  // namespace torchquant::nn
