// Implements the C++ QAT layers: each one is its torch::nn parent with the weight passed through a FakeQuantize.
#include "nn/layers.h"

#include <torch/nn/functional/conv.h>
#include <torch/nn/functional/embedding.h>
#include <torch/nn/functional/linear.h>
#include <torch/nn/modules/conv.h>
#include <torch/nn/modules/embedding.h>
#include <torch/nn/modules/linear.h>

namespace torchquant::nn {

namespace F = torch::nn::functional;

namespace {

FakeQuantize weight_fake_quantize(const torch::Tensor& weight, int64_t weight_bits) {
  return FakeQuantize(FakeQuantizeOptions::weight(weight.size(0), /*axis=*/0, weight_bits));
}

template <size_t D>
void check_padding_mode(const char* layer, const torch::nn::ConvOptions<D>& options) {
  TORCH_CHECK(std::holds_alternative<torch::enumtype::kZeros>(options.padding_mode()), layer,
              ": padding_mode must be zeros, the only one that integer convolution has");
}

}  // namespace

LinearImpl::LinearImpl(const torch::nn::LinearOptions& options_, int64_t weight_bits_)
    : options(options_), weight_bits(weight_bits_) {
  reset();
}

void LinearImpl::reset() {
  const torch::nn::LinearImpl plain(options);
  weight = register_parameter("weight", plain.weight);
  bias = register_parameter("bias", plain.bias, options.bias());
  weight_fake_quant = register_module("weight_fake_quant", weight_fake_quantize(weight, weight_bits));
}

void LinearImpl::pretty_print(std::ostream& stream) const {
  stream << "torchquant::";
  torch::nn::LinearImpl(options).pretty_print(stream);
}

torch::Tensor LinearImpl::forward(const torch::Tensor& x) { return F::linear(x, weight_fake_quant(weight), bias); }

Conv1dImpl::Conv1dImpl(const torch::nn::Conv1dOptions& options_, int64_t weight_bits_)
    : options(options_), weight_bits(weight_bits_) {
  check_padding_mode("torchquant::nn::Conv1d", options);
  reset();
}

void Conv1dImpl::reset() {
  const torch::nn::Conv1dImpl plain(options);
  weight = register_parameter("weight", plain.weight);
  bias = register_parameter("bias", plain.bias, options.bias());
  weight_fake_quant = register_module("weight_fake_quant", weight_fake_quantize(weight, weight_bits));
}

void Conv1dImpl::pretty_print(std::ostream& stream) const {
  stream << "torchquant::";
  torch::nn::Conv1dImpl(options).pretty_print(stream);
}

torch::Tensor Conv1dImpl::forward(const torch::Tensor& x) {
  return F::detail::conv1d(x, weight_fake_quant(weight), bias, options.stride(), options.padding(), options.dilation(),
                           options.groups());
}

Conv2dImpl::Conv2dImpl(const torch::nn::Conv2dOptions& options_, int64_t weight_bits_)
    : options(options_), weight_bits(weight_bits_) {
  check_padding_mode("torchquant::nn::Conv2d", options);
  reset();
}

void Conv2dImpl::reset() {
  const torch::nn::Conv2dImpl plain(options);
  weight = register_parameter("weight", plain.weight);
  bias = register_parameter("bias", plain.bias, options.bias());
  weight_fake_quant = register_module("weight_fake_quant", weight_fake_quantize(weight, weight_bits));
}

void Conv2dImpl::pretty_print(std::ostream& stream) const {
  stream << "torchquant::";
  torch::nn::Conv2dImpl(options).pretty_print(stream);
}

torch::Tensor Conv2dImpl::forward(const torch::Tensor& x) {
  return F::detail::conv2d(x, weight_fake_quant(weight), bias, options.stride(), options.padding(), options.dilation(),
                           options.groups());
}

EmbeddingImpl::EmbeddingImpl(const torch::nn::EmbeddingOptions& options_, int64_t weight_bits_)
    : options(options_), weight_bits(weight_bits_) {
  reset();
}

void EmbeddingImpl::reset() {
  const torch::nn::EmbeddingImpl plain(options);
  options = plain.options;  // a negative padding_idx counted from the end
  weight = register_parameter("weight", plain.weight);
  weight_fake_quant = register_module("weight_fake_quant", weight_fake_quantize(weight, weight_bits));
}

void EmbeddingImpl::pretty_print(std::ostream& stream) const {
  stream << "torchquant::";
  torch::nn::EmbeddingImpl(options).pretty_print(stream);
}

torch::Tensor EmbeddingImpl::forward(const torch::Tensor& indices) {
  return F::detail::embedding(indices, weight_fake_quant(weight), options.padding_idx(), options.max_norm(),
                              options.norm_type(), options.scale_grad_by_freq(), options.sparse());
}

}  // namespace torchquant::nn
